"""What the real sizes take: parameters by component, and bytes of weights, gradients and optimiser state by recipe.

No checkpoint is read: each model is built from its published config values on the meta device, where tensors have
shapes and no memory, and goes through what a run does with a loaded one: layers are chosen for quantisation by
vlmft.recipes.base, wrapped and cast by vlmft.recipes.apply, counted by vlmft.recipes.table. Trained weights and their
gradients are float32, frozen weights bf16 or quantised; the optimiser is AdamW. Activations are not counted.

    python benchmarks/families.py           count, print, write benchmarks/results/families.json
    python benchmarks/families.py --quick   one model and three recipes, no result file
"""

import argparse
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import composed, provenance, show, write_result

from vlmft.assembly import quiet_libraries

CONF = Path(__file__).parents[1] / "conf/recipe"
QUICK = ("fft", "lora_vt_llm", "ln_vt_lora_llm_nf4")
BOUND = 0.01
"""How far a total may be from the published one, as a share of it."""


@dataclass(frozen=True)
class Size:
    """A published checkpoint."""

    checkpoint: str
    """Its hub id: `config` holds the values of its config.json by which parameters are counted."""
    model: str
    """The word for `model=`."""
    published: int
    """Parameters in all, as the hub shows them for its safetensors files (rounded where `7.94B` is all it says)."""
    config: Mapping[str, Any]
    unreached: str | None = None
    """What of it no gradient reaches, as a regular expression over names; a run finds it by its probe."""


SIZES = [
    Size(
        "Qwen/Qwen2.5-VL-3B-Instruct",
        "qwen25vl",
        3_754_622_976,
        {
            "model_type": "qwen2_5_vl",
            "tie_word_embeddings": True,
            "text_config": {
                "hidden_size": 2048,
                "intermediate_size": 11008,
                "num_hidden_layers": 36,
                "num_attention_heads": 16,
                "num_key_value_heads": 2,
                "vocab_size": 151936,
            },
            "vision_config": {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 2048,
            },
        },
    ),
    Size(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "qwen25vl",
        8_292_166_656,
        {
            "model_type": "qwen2_5_vl",
            "tie_word_embeddings": False,
            "text_config": {
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "vocab_size": 152064,
            },
            "vision_config": {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 3584,
            },
        },
    ),
    Size(
        "Qwen/Qwen3-VL-8B-Instruct",
        "qwen3vl",
        8_767_123_696,
        {
            "model_type": "qwen3_vl",
            "tie_word_embeddings": False,
            "text_config": {
                "hidden_size": 4096,
                "intermediate_size": 12288,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "vocab_size": 151936,
            },
            "vision_config": {
                "depth": 27,
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_heads": 16,
                "out_hidden_size": 4096,
                "patch_size": 16,
                "num_position_embeddings": 2304,
                "deepstack_visual_indexes": [8, 16, 24],
            },
        },
    ),
    Size(
        "OpenGVLab/InternVL3-8B-hf",
        "internvl3",
        7_940_000_000,
        {
            "model_type": "internvl",
            # Its file does not say so, and the class's default is True; but both weights are among the checkpoint's,
            # and transformers leaves those untied.
            "tie_word_embeddings": False,
            "text_config": {
                "model_type": "qwen2",
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "vocab_size": 151674,
            },
            "vision_config": {
                "hidden_size": 1024,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "intermediate_size": 4096,
                "image_size": [448, 448],
                "patch_size": [14, 14],
                "attention_bias": True,
                "use_qk_norm": False,
                "norm_type": "layer_norm",
            },
        },
    ),
    Size(
        "llava-hf/llava-1.5-7b-hf",
        "llava15",
        7_063_427_072,
        {
            "model_type": "llava",
            "text_config": {
                "model_type": "llama",
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
                "vocab_size": 32064,
                "tie_word_embeddings": False,
            },
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": 1024,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "intermediate_size": 4096,
                "image_size": 336,
                "patch_size": 14,
                "projection_dim": 768,
            },
        },
        unreached=r"vision_tower\..*(encoder\.layers\.23|post_layernorm)\.",
    ),
    Size(
        "google/gemma-3-4b-it",
        "gemma3",
        4_300_079_472,
        {
            "model_type": "gemma3",
            "mm_tokens_per_image": 256,
            "tie_word_embeddings": True,
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_hidden_layers": 34,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "head_dim": 256,
                "vocab_size": 262208,
            },
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 1152,
                "num_hidden_layers": 27,
                "num_attention_heads": 16,
                "intermediate_size": 4304,
                "image_size": 896,
                "patch_size": 14,
                "vision_use_head": False,
            },
        },
    ),
]


def main() -> int:
    """Count, print, write benchmarks/results/families.json; return 1 where a total is not the published one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{SIZES[0].checkpoint}, {', '.join(QUICK)}; no file")
    options = parser.parse_args()
    quiet_libraries()
    made = provenance()
    sizes = SIZES[:1] if options.quick else SIZES
    recipes = QUICK if options.quick else tuple(sorted(path.stem for path in CONF.glob("*.yaml")))
    found = {size.checkpoint: count(size, recipes) for size in sizes}
    show_tables(found)
    if not options.quick:
        head = {"command": "python benchmarks/families.py", "unit": "bytes", "bound_share": BOUND}
        write_result("families", head | {"models": found}, made)
    return int(any(abs(figures["of_published"] - 1) > BOUND for figures in found.values()))


def count(size: Size, recipes: tuple[str, ...]) -> dict[str, Any]:
    """What a model is made of, and what each recipe takes."""
    by_recipe = {recipe: count_recipe(size, recipe) for recipe in recipes}
    components = by_recipe[recipes[0]]["parameters"]
    total = sum(components.values())
    if any(figures.pop("parameters") != components for figures in by_recipe.values()):
        raise RuntimeError(f"{size.checkpoint}: recipes count different parameters")
    return {
        "model": size.model,
        "parameters": components,
        "total": total,
        "published": size.published,
        "of_published": total / size.published,
        "recipes": by_recipe,
    }


def count_recipe(size: Size, recipe: str) -> dict[str, Any]:
    """Parameters, trained ones, and bytes, as a run's table has them, by component or summed over them."""
    import torch

    from vlmft.recipes.apply import apply_recipe
    from vlmft.recipes.base import load_base
    from vlmft.recipes.table import component_rows

    config = composed(f"model={size.model}", f"recipe={recipe}", "precision=bf16")
    family = on_meta(config.model, size.config)
    meta = torch.device("meta")
    with meta:
        model = load_base(family, config.recipe, torch.bfloat16, meta)
        model = apply_recipe(model, config.recipe, family, torch.bfloat16)
    if size.unreached:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and re.search(size.unreached, name):
                parameter.requires_grad_(False)
    rows = component_rows(model, config.recipe, family, config.optim.lr, config.optim.state_bytes)
    trainable = sum(row.trainable for row in rows)
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    state = sum(config.optim.state_bytes(row.trainable) for row in rows)
    total = sum(row.memory_bytes for row in rows)
    return {
        "parameters": {row.component: row.parameters for row in rows},
        "policies": {row.component: row.policy for row in rows},
        "trainable": {row.component: row.trainable for row in rows},
        "trainable_total": trainable,
        "weights": total - gradients - state,
        "of_these_copies": sum(row.copies_bytes for row in rows),
        "gradients": gradients,
        "optimiser": state,
        "total": total,
    }


def on_meta(spec: Any, config: Mapping[str, Any]) -> Any:
    """The family of `spec`, whose checkpoint is what `config` says, without weights."""

    class OnMeta(type(spec)):  # type: ignore[misc]
        def skeleton(self) -> Any:
            """See `ModelSpec`."""
            return build(config)

        def load_model(self, device: Any, quantization: Any = None) -> Any:
            """See `ModelSpec`."""
            return build(config) if quantization is None else quantised(build(config), quantization)

    return OnMeta(**dict(spec))


def build(config: Mapping[str, Any]) -> Any:
    """The model on the meta device, in bf16, as all but LLaVA (fp16) are published: a run casts each weight anyway."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.initialization import no_init_weights

    values = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    with torch.device("meta"), no_init_weights():
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**values), dtype=torch.bfloat16)
    model.tie_weights()  # which belongs to what no_init_weights leaves out
    return model


def quantised(model: Any, quantization: Any) -> Any:
    """`model` with bitsandbytes' layers as transformers places them, their weights of the size that quantising gives.

    On the meta device bitsandbytes leaves the weights as they are.
    """
    import torch
    from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt
    from transformers.integrations import replace_with_bnb_linear

    keep = quantization.llm_int8_skip_modules
    model = replace_with_bnb_linear(model, modules_to_not_convert=keep, quantization_config=quantization)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.weight = packed(module.weight)
        elif isinstance(module, Linear8bitLt):
            module.weight = Int8Params(torch.empty_like(module.weight, dtype=torch.int8), requires_grad=False)
    return model


def packed(weight: Any, block: int = 64, nested_block: int = 256) -> Any:
    """A 4-bit weight on the meta device: two values a byte, an 8-bit scale for 64, a float32 one for 256 of these."""
    import torch
    from bitsandbytes.functional import QuantState
    from bitsandbytes.nn import Params4bit

    def empty(number: int, dtype: Any) -> Any:
        return torch.empty(number, dtype=dtype, device="meta")

    scales = math.ceil(weight.numel() / block)
    nested = QuantState(absmax=empty(math.ceil(scales / nested_block), torch.float32))
    state = QuantState(absmax=empty(scales, torch.uint8), shape=weight.shape, dtype=torch.bfloat16, state2=nested)
    data = empty(math.ceil(weight.numel() / 2), torch.uint8).unsqueeze(1)
    return Params4bit(data, requires_grad=False, quant_state=state, quant_type="nf4", bnb_quantized=True)


def show_tables(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Print what was counted, in 80 columns."""
    show(
        "parameters, in millions",
        ("checkpoint", "tower", "projector", "LLM", "all", "of published"),
        [
            (
                checkpoint.partition("/")[2].removesuffix("-Instruct"),
                *(f"{figures['parameters'][name] / 1e6:,.1f}" for name in ("vision_tower", "projector", "llm")),
                f"{figures['total'] / 1e6:,.1f}",
                f"{figures['of_published']:.2%}",
            )
            for checkpoint, figures in found.items()
        ],
        [],
    )
    for checkpoint, figures in found.items():
        show(
            f"{checkpoint}: GiB by recipe, bf16",
            ("recipe", "trained, M", "weights", "gradients", "optimiser", "all"),
            [
                (
                    recipe,
                    f"{taken['trainable_total'] / 1e6:,.1f}",
                    *(f"{taken[part] / 2**30:.2f}" for part in ("weights", "gradients", "optimiser", "total")),
                )
                for recipe, taken in figures["recipes"].items()
            ],
            [],
        )
    print("weights: trained ones in float32, frozen ones in bf16 or quantised, with originals that PEFT keeps; AdamW")


if __name__ == "__main__":
    sys.exit(main())
