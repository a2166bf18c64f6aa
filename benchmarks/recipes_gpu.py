"""Peak memory and steps a second of VILA's recipes on a GPU, beside plain transformers and PEFT in the same run.

Models of real sizes with random weights, built from their published config values (benchmarks/families.py). A step is
one sample: a picture of 448 x 448 pixels (256 tokens) and 300 tokens of text, of which the last 150 are supervised;
bf16, AdamW, no gradient checkpointing, as in the table that NVILA's authors publish. Each recipe runs in a process of
its own, first vlmft's side (`load_base`, `apply_recipe`, `supervised_loss`), then, where plain PEFT has the like, the
yardstick: `from_pretrained` in bf16, adapters on the same layers, the same parameters unfrozen, the model's own loss,
the same optimiser. Memory is what the allocator held at most, from the first step on; a recipe that does not fit says
so. No figures of it are recorded yet.

    python benchmarks/recipes_gpu.py                       both models; needs a GPU of 80 GB, and 20 GB of disk each
    python benchmarks/recipes_gpu.py --model qwen25vl      one of them; the result file keeps the other's figures
    python benchmarks/recipes_gpu.py --quick               the tiny Qwen2.5-VL, two recipes, on a CPU too; no file
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
from common import Spread, composed, provenance, show, write_result
from families import SIZES, Size

from vlmft.assembly import quiet_libraries

CHECKPOINTS = ("Qwen/Qwen2.5-VL-7B-Instruct", "OpenGVLab/InternVL3-8B-hf")
RECIPES = (
    *("lora_vt_llm", "ln_vt_lora_llm", "lora_llm", "fft_vt_lora_llm", "ln_vt", "fft_vt"),
    *("lora_vt_llm_nf4", "ln_vt_lora_llm_nf4", "lora_llm_nf4", "fft"),
)
QUICK = ("lora_vt_llm", "ln_vt_lora_llm")
SIDE, TEXT, SUPERVISED = 448, 300, 150
WARMUP, STEPS, QUICK_STEPS = 3, 20, 3
PEFT_BOUND = 24e9
"""Bytes that every recipe with a frozen or adapted LLM is meant to stay below."""


def main() -> int:
    """Measure, print, write benchmarks/results/recipes_gpu.json; return 1 where a recipe failed by an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[size.model for size in SIZES if size.checkpoint in CHECKPOINTS])
    parser.add_argument("--quick", action="store_true", help="the tiny Qwen2.5-VL, no result file")
    parser.add_argument("--one", nargs=5, metavar="WORD", help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet_libraries()
    if options.one:
        model, path, recipe, side, steps = options.one
        print(json.dumps(one(model, path, recipe, side, int(steps))))
        return 0
    made = provenance() | {"gpu": gpu_name()}
    sizes = [size for size in SIZES if size.checkpoint in CHECKPOINTS and options.model in (None, size.model)]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if options.quick:
            tiny = composed().model.folder()
            found["tiny"] = measure("qwen25vl", tiny, QUICK, QUICK_STEPS)
        for size in [] if options.quick else sizes:
            path = write_random(size, Path(folder) / size.model)
            found[size.checkpoint] = measure(size.model, path, RECIPES, STEPS)
    for name, figures in found.items():
        show_table(name, figures)
    if not options.quick:
        before = common.RESULTS / "recipes_gpu.json"
        kept = json.loads(before.read_text(encoding="utf-8"))["models"] if before.exists() and options.model else {}
        head = {"command": "python benchmarks/recipes_gpu.py", "picture": SIDE, "text_tokens": TEXT}
        write_result("recipes_gpu", head | {"bound_bytes": PEFT_BOUND, "models": kept | found}, made)
    return int(
        any("error" in side for figures in found.values() for sides in figures.values() for side in sides.values())
    )


def gpu_name() -> str | None:
    """What the figures were made on; None where there is no GPU."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def write_random(size: Size, folder: Path) -> Path:
    """A checkpoint of the size's class with random weights, in bf16."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with device:
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**size.config), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    del model
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return folder


def measure(model: str, path: Path, recipes: tuple[str, ...], steps: int) -> dict[str, dict[str, Any]]:
    """Both sides of each recipe, each in a process of its own."""
    found: dict[str, dict[str, Any]] = {}
    for recipe in recipes:
        # bitsandbytes' layers are the same on both sides.
        sides = ("vlmft",) if recipe.endswith("_nf4") else ("vlmft", "plain")
        found[recipe] = {side: run_child(model, path, recipe, side, steps) for side in sides}
    return found


def run_child(*words: object) -> dict[str, Any]:
    """What `one` finds; the last line of what it says where it fails."""
    command = [sys.executable, __file__, "--one", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no word"])[-1]}
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def one(model_word: str, path: str, recipe: str, side: str, steps: int) -> dict[str, Any]:
    """Milliseconds a step and peak bytes of one side under one recipe; what did not fit says so."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = composed(f"model={model_word}", f"model.path={path}", "precision=bf16", f"recipe={recipe}")
    try:
        model, step = (prepare_vlmft if side == "vlmft" else prepare_plain)(config, device)
        times: list[float] = []
        for number in range(WARMUP + steps):
            if number == 0 and device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number >= WARMUP:
                times.append((time.perf_counter() - started) * 1000)
    except torch.OutOfMemoryError:
        return {"fits": False}
    spread = Spread.of(times)
    return {
        "fits": True,
        "ms": {"median": spread.median, "p10": spread.p10, "p90": spread.p90, "n": spread.n},
        "steps_per_s": 1000 / spread.median,
        "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def load_vlmft(config: Any, device: Any) -> Any:
    """The model as a run has it, that packs."""
    import torch

    from vlmft.models.packing import use_packed_attention
    from vlmft.models.tower import use_fast_tower
    from vlmft.recipes.apply import apply_recipe
    from vlmft.recipes.base import load_base
    from vlmft.recipes.dtypes import compute_in

    model = load_base(config.model, config.recipe, torch.bfloat16, device)
    use_fast_tower(model)
    if config.model.unpacked_because is None:
        use_packed_attention(model)
    model = apply_recipe(model, config.recipe, config.model, torch.bfloat16)
    compute_in(model, torch.bfloat16, device)
    return model


def prepare_vlmft(config: Any, device: Any) -> tuple[Any, Any]:
    """The model as a run has it, and its step."""
    from vlmft.recipes.groups import parameter_groups
    from vlmft.training.loss import supervised_loss

    family, model = config.model, load_vlmft(config, device)
    optimizer = config.optim.build(parameter_groups(model, config.recipe, family, config.optim.lr, 0.0))
    inputs, labels = sample(model.config, device)
    model.train()

    def step() -> None:
        (supervised_loss(model, inputs, labels) / SUPERVISED).backward()
        optimizer.step()
        optimizer.zero_grad()

    return model, step


def load_plain(config: Any, device: Any) -> Any:
    """The same recipe by transformers and PEFT alone, all in bf16."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    family, adapters = config.model, config.recipe.adapters
    model = AutoModelForImageTextToText.from_pretrained(
        family.path, dtype=torch.bfloat16, attn_implementation=family.attention, device_map=device
    )
    reference = trained_names(config, device)
    if adapters:
        policy = next(iter(adapters.values()))
        layers = sorted({name.partition(".lora_")[0] for name in reference if ".lora_" in name})
        model = get_peft_model(model, LoraConfig(r=policy.rank, lora_alpha=policy.alpha, target_modules=layers))
    whole = {name for name in reference if ".lora_" not in name}
    for name, parameter in model.named_parameters():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        parameter.requires_grad_(".lora_" in name or plain in whole)
    return model


def prepare_plain(config: Any, device: Any) -> tuple[Any, Any]:
    """That model, and its step."""
    import torch

    model = load_plain(config, device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=device.type == "cuda")
    inputs, labels = sample(model.config, device)
    model.train()

    def step() -> None:
        model(**inputs, labels=labels, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return model, step


def trained_names(config: Any, device: Any) -> set[str]:
    """What vlmft trains under the recipe, by the names of the model that is not wrapped."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from vlmft.recipes.apply import apply_recipe

    with torch.device("meta"):
        bare = AutoModelForImageTextToText.from_config(
            AutoConfig.from_pretrained(config.model.path), dtype=torch.bfloat16
        )
        model = apply_recipe(bare, config.recipe, config.model, torch.bfloat16)
    names = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
    return {name.removeprefix("base_model.model.").replace(".modules_to_save.default", "") for name in names}


def sample(config: Any, device: Any) -> tuple[dict[str, Any], Any]:
    """One sample's inputs, and its labels [1, S]; pixels are noise."""
    import torch

    torch.manual_seed(0)
    vision, image = config.vision_config, getattr(config, "image_token_id", None)
    patch = vision.patch_size if isinstance(vision.patch_size, int) else vision.patch_size[0]
    patches = SIDE // patch
    features = (patches // 2) ** 2
    words = torch.randint(0, image, (TEXT,))
    ids = torch.cat([words[:SUPERVISED], torch.full((features,), image), words[SUPERVISED:]])[None].to(device)
    labels = ids.clone()
    labels[:, :-SUPERVISED] = -100
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if hasattr(vision, "spatial_merge_size"):
        values = vision.in_channels * vision.temporal_patch_size * patch * patch
        inputs["pixel_values"] = torch.randn(patches * patches, values, device=device)
        inputs["image_grid_thw"] = torch.tensor([[1, patches, patches]], device=device)
        inputs["mm_token_type_ids"] = (ids == image).int()
    else:
        inputs["pixel_values"] = torch.randn(1, 3, SIDE, SIDE, device=device)
    return inputs, labels


def show_table(name: str, figures: dict[str, dict[str, Any]]) -> None:
    """Print one model's figures."""
    rows = [
        (recipe, side, *cells(found), ratio(sides) if side == "vlmft" else "")
        for recipe, sides in figures.items()
        for side, found in sides.items()
    ]
    columns = ("recipe", "by", "steps/s", "p10 to p90, ms", "peak GB", "of plain's steps/s")
    show(
        name,
        columns,
        rows,
        [f"plain: transformers and PEFT; PEFT recipes are meant to stay below {PEFT_BOUND / 1e9:.0f} GB"],
    )


def cells(found: dict[str, Any]) -> tuple[str, str, str]:
    """Steps a second, their spread and memory, or why there are none."""
    if "error" in found:
        return found["error"][:40], "", ""
    if not found["fits"]:
        return "does not fit", "", ""
    peak = found["peak_bytes"]
    spread = f"{found['ms']['p10']:.0f} to {found['ms']['p90']:.0f}"
    return f"{found['steps_per_s']:.2f}", spread, "-" if peak is None else f"{peak / 1e9:.1f}"


def ratio(sides: dict[str, dict[str, Any]]) -> str:
    """vlmft's steps a second by plain's."""
    rates = [sides.get(side, {}).get("steps_per_s") for side in ("vlmft", "plain")]
    return f"{rates[0] / rates[1]:.2f}" if all(rates) else "-"


if __name__ == "__main__":
    sys.exit(main())
