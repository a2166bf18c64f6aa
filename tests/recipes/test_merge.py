"""Merging: every shipped recipe, and combinations that none has, on bases of each dtype, compared with the model that
trained. `tests/merging` looks at the folder that is written, and at the command."""

import copy
import dataclasses
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from tests.recipes.expected import LLM_BIASES, PEFT, SHIPPED
from tests.recipes.training import (
    IN_BOTH_PRECISIONS,
    Trained,
    batches,
    save_trained,
    shipped,
    train,
    trained_recipe,
    untied,
)
from tests.support import CPU, compose, literally, logits, policy, tiny, with_policies
from vlmft.errors import ConfigError
from vlmft.models import Qwen25VL
from vlmft.recipes.apply import apply_recipe
from vlmft.recipes.merge import compute_exactly, dequantise, load_merged
from vlmft.recipes.saved import load, open_saved
from vlmft.train import TrainConfig

FINER = {torch.float32: torch.float64, torch.bfloat16: torch.float32, torch.float16: torch.float32}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@cache
def base_in(precision: str) -> Path:
    """A copy of the tiny checkpoint whose weights are of this precision."""
    folder = Path(mkdtemp(dir=tiny().folder().parent)) / "base"
    shutil.copytree(tiny().folder(), folder)
    model = tiny().load_model(CPU)
    model.to(DTYPES[precision]).save_pretrained(folder)
    return folder


def on_base(config: TrainConfig, precision: str) -> TrainConfig:
    model = Qwen25VL(**(dict(config.model) | {"path": str(base_in(precision))}))
    return config.model_copy(update={"model": model})


@cache
def trained_on(recipe: str, precision: str) -> Trained:
    """A shipped recipe after three steps on a base of the precision that is computed in."""
    if precision == "fp32":
        return trained_recipe(recipe)
    return train(on_base(shipped(recipe, precision), precision))


def merged(trained: Trained, folder: Path) -> Any:
    """The model that comes of merging what was trained."""
    return load_merged(open_saved(save_trained(trained, folder)), CPU)[0]


def loaded(trained: Trained, folder: Path) -> Trained:
    """The same to be changed. A deep copy of a model in bf16 would still call the original's forward."""
    return Trained(trained.config, load(save_trained(trained, folder))[0], {})


def exact(trained: Trained, folder: Path) -> Trained:
    """The same on a dequantised base, which rounds no inputs."""
    again = loaded(trained, folder)
    assert apart(trained.model, again.model) == 0
    compute_exactly(again.model)
    return again


def cast(model: Any, dtype: torch.dtype) -> Any:
    """A copy with its weights, not its buffers, in another dtype."""
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def apart(one: Any, other: Any) -> float:
    return max(float((logits(one, batch).double() - logits(other, batch).double()).abs().max()) for batch in batches())


def bound(model: Any, dtype: torch.dtype) -> float:
    """By how much rounding to `dtype` may move a logit: twice what computing in it does, against twice its bits."""
    return 2 * apart(cast(model, dtype), cast(model, FINER[dtype]))


def assert_merges(trained: Trained, folder: Path) -> tuple[Any, float]:
    """Merge it and hold it against the model that trained; returns the merged model, and what rounding may do."""
    found = merged(trained, folder)
    base = trained.config.model.load_model(CPU)
    assert type(found) is type(base)
    dtype = base.dtype
    assert {name: (p.dtype, p.shape) for name, p in found.named_parameters()} == {
        name: (p.dtype, p.shape) for name, p in base.named_parameters()
    }
    allowed = bound(found, dtype)
    assert apart(found, trained.model) <= allowed
    return found, allowed


@pytest.mark.parametrize(("recipe", "precision"), IN_BOTH_PRECISIONS)
def test_a_merged_model_answers_as_the_trained_one_but_for_rounding(
    recipe: str, precision: str, tmp_path: Path
) -> None:
    trained = trained_on(recipe, precision)
    if recipe == "lora_llm_int8":
        rounding = apart(trained.model, (trained := exact(trained, tmp_path / "exact")).model)
        assert 0 < rounding < 0.2  # what int8 does to the inputs, which merging cannot keep
    found, allowed = assert_merges(trained, tmp_path)
    assert found.lm_head.weight is found.get_input_embeddings().weight
    assert apart(found, trained.config.model.load_model(CPU)) > allowed  # it did learn


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("recipe", ["ln_vt_lora_llm", "projector"])
def test_what_did_not_train_is_the_bases_own_bit_for_bit(recipe: str, precision: str, tmp_path: Path) -> None:
    trained = trained_on(recipe, precision)
    before = dict(trained.config.model.load_model(CPU).named_parameters())
    after = dict(merged(trained, tmp_path).named_parameters())
    marks = ("merger",) if recipe == "projector" else ("merger", "norm1", "norm2", "_proj")
    untouched = {name for name in before if torch.equal(before[name], after[name])}
    learned = {
        name
        for name in before
        if any(mark in name for mark in marks) and not (".visual.blocks" in name and "_proj" in name)
    } - {name for name in before if name.endswith("_proj.bias")}
    assert before.keys() - untouched <= learned
    assert len(untouched) >= len(before) - len(learned) > 10


@pytest.mark.parametrize("precision", DTYPES)
def test_leaving_out_any_one_adapter_is_more_than_rounding(precision: str, tmp_path: Path) -> None:
    """With adapters as large as long training makes them."""
    trained = loaded(trained_on("lora_vt_llm", precision), tmp_path / "trained")
    torch.manual_seed(0)
    layers = {name: m for name, m in trained.model.named_modules() if isinstance(m, LoraLayer)}
    assert len(layers) == 24
    for layer in layers.values():
        nn.init.normal_(layer.lora_B["default"].weight, std=0.2)
    found = merged(trained, tmp_path / "larger")
    allowed = bound(found, DTYPES[precision])
    assert apart(found, trained.model) <= allowed
    answers = [(batch, logits(found, batch).double()) for batch in batches()]
    for name, layer in layers.items():
        scaling, layer.scaling["default"] = layer.scaling["default"], 0.0
        # The first batch tells already; the others are asked where it does not.
        differs = ((logits(trained.model, batch).double() - its).abs().max() > allowed for batch, its in answers)
        assert any(differs), name
        layer.scaling["default"] = scaling


def test_a_sum_is_rounded_once(tmp_path: Path) -> None:
    trained = trained_on("lora_llm", "bf16")
    name = "model.language_model.layers.0.mlp.up_proj"
    layer = trained.model.get_base_model().get_submodule(name)
    base = trained.config.model.load_model(CPU).get_submodule(name).weight
    delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
    found = merged(trained, tmp_path).get_submodule(name).weight
    assert torch.equal(found, (base.float() + delta).bfloat16())
    assert not torch.equal(found, base + delta.bfloat16())  # PEFT's way


COMBINED: dict[str, Callable[[], TrainConfig]] = {
    "magnitudes on a base in 4 bits": lambda: with_policies(
        compose("recipe=lora_llm"), llm=policy("lora", dora=True, base="nf4")
    ),
    "rank and alpha of each component": lambda: with_policies(
        compose("recipe=lora_vt_llm"), vision_tower=policy("lora", rank=4, alpha=32)
    ),
    "a block in full beside adapters": lambda: with_policies(
        compose("recipe=lora_llm"), vision_tower=policy("topk", k=1), projector=policy("frozen")
    ),
    "blocks without adapters": lambda: with_policies(
        compose("recipe=projector"), vision_tower=policy("norms"), llm=policy("topk", k=1)
    ),
}


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("combined", COMBINED)
def test_other_combinations_merge_too(combined: str, precision: str, tmp_path: Path) -> None:
    config = on_base(COMBINED[combined](), precision).model_copy(update={"precision": precision})
    assert_merges(train(config), tmp_path)


def test_a_base_finer_than_the_run_keeps_its_own_precision(tmp_path: Path) -> None:
    trained = trained_recipe("lora_llm", "bf16")
    found = merged(trained, tmp_path)
    assert found.dtype == torch.float32
    before = dict(tiny().load_model(CPU).named_parameters())
    assert all(torch.equal(p, before[n]) for n, p in found.named_parameters() if ".visual.blocks" in n)
    assert apart(found, trained.model) <= bound(found, torch.bfloat16)


def test_an_adapter_on_the_tied_head_leaves_the_embedding_alone(tmp_path: Path) -> None:
    config = with_policies(compose("recipe=lora_llm"), llm=policy("lora", targets=["lm_head", "q_proj"]))
    trained = train(config)
    found = merged(trained, tmp_path)
    assert apart(found, trained.model) <= bound(found, torch.float32)
    embedding = found.get_input_embeddings().weight
    assert not found.config.tie_word_embeddings and found.lm_head.weight is not embedding
    assert torch.equal(embedding, tiny().load_model(CPU).get_input_embeddings().weight)


def test_adapters_on_an_embedding_and_its_own_head_are_merged(tmp_path: Path) -> None:
    config = untied(compose("recipe=lora_llm", "recipe.llm.targets=[embed_tokens,lm_head,q_proj]"), tmp_path / "base")
    trained = train(config)
    assert {name for name in trained.moved() if "lora_embedding" in name}
    found, _ = assert_merges(trained, tmp_path / "final")
    base = config.model.load_model(CPU)
    for end in ("get_input_embeddings", "get_output_embeddings"):
        assert not torch.equal(getattr(found, end)().weight, getattr(base, end)().weight)


def test_biases_that_train_beside_adapters_are_saved_and_merged(tmp_path: Path) -> None:
    trained = train(compose("recipe=lora_llm", "recipe.llm.bias=true"))
    biases = {f"{PEFT}{name.removesuffix('.bias')}.base_layer.bias" for name in LLM_BIASES}
    assert trained.trainable == trained.moved() == SHIPPED["lora_llm"].names | biases
    again = loaded(trained, tmp_path / "saved")
    assert apart(again.model, trained.model) == 0
    assert_merges(trained, tmp_path / "merged")


def test_a_weight_that_no_gradient_reached_is_the_bases(tmp_path: Path) -> None:
    config = compose("recipe=projector")
    name = "model.visual.merger.ln_q.weight"
    model = apply_recipe(config.model.load_model(CPU), config.recipe, config.model, torch.float32)
    model.get_parameter(name).requires_grad_(False)
    folder = save_trained(Trained(config, model, {}), tmp_path, unreached=(name,))
    found = load_merged(open_saved(folder), CPU)[0]
    assert torch.equal(found.get_parameter(name), tiny().load_model(CPU).get_parameter(name))


def test_says_which_weight_rounding_changed_most(tmp_path: Path) -> None:
    _, none = load_merged(open_saved(save_trained(trained_on("fft", "fp32"), tmp_path / "fp32")), CPU)
    assert none is None
    trained = trained_on("fft", "bf16")
    found, rounded = load_merged(open_saved(save_trained(trained, tmp_path / "bf16")), CPU)
    exact = dict(trained.model.named_parameters())
    changes = {n: float((p.float() - exact[n]).norm() / exact[n].norm()) for n, p in found.named_parameters()}
    assert rounded is not None
    assert changes[rounded.name] == max(changes.values()) == pytest.approx(rounded.change)
    assert 0 < rounded.change < 2**-8


@pytest.mark.parametrize("recipe", ["projector", "lora_llm"])
def test_a_weight_that_the_bases_dtype_cannot_hold_is_refused(recipe: str, tmp_path: Path) -> None:
    trained = trained_on(recipe, "fp32")
    trained = Trained(on_base(trained.config, "bf16"), copy.deepcopy(trained.model), {})
    name = next(n for n, p in trained.model.named_parameters() if "merger" in n and p.requires_grad)
    with torch.no_grad():
        trained.model.get_parameter(name)[0] = 3.4e38
    with pytest.raises(ConfigError, match=r"ln_q\.weight: has values that bfloat16, the base's dtype, cannot hold"):
        merged(trained, tmp_path)


def test_an_adapter_with_a_nan_is_refused_by_its_layer(tmp_path: Path) -> None:
    trained = loaded(trained_on("lora_llm", "fp32"), tmp_path / "trained")
    layer = "model.language_model.layers.1.mlp.down_proj"
    trained.model.get_base_model().get_submodule(layer).lora_B["default"].weight.data[0, 0] = torch.nan
    with pytest.raises(ConfigError, match=literally(f"{layer}.weight: cannot be merged: NaNs detected")):
        merged(trained, tmp_path / "broken")


@pytest.mark.parametrize(("kind", "precision"), [("nf4", "fp32"), ("nf4", "bf16"), ("int8", "fp32")])
def test_a_quantised_base_is_dequantised_and_then_merged(kind: str, precision: str, tmp_path: Path) -> None:
    """The LLM's linear layers are quantised by hand, by bitsandbytes itself, below the adapters and beside them."""
    pytest.importorskip("bitsandbytes")
    trained = trained_on("lora_llm", precision)
    saved = open_saved(save_trained(trained, tmp_path))
    quantised = dataclasses.replace(saved, family=_Quantised(saved.family, kind))
    adapted, _ = quantised.load(CPU)
    found = load_merged(quantised, CPU)[0]
    dtype = DTYPES[precision]
    assert not any("bitsandbytes" in type(module).__module__ for module in found.modules())
    assert {p.dtype for p in found.parameters()} == {dtype}
    for name, layer in adapted.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
            weight = (dequantise(layer.base_layer).weight + delta).to(dtype)
            assert torch.equal(found.get_submodule(name).weight, weight), name
    assert torch.equal(found.lm_head.weight, trained.config.model.load_model(CPU).lm_head.weight)
    if (
        kind == "nf4"
    ):  # in 8 bits, each layer's input is quantised as well, so that it computes coarser than its weights
        assert apart(found, adapted) <= bound(found, dtype)
    assert apart(found, trained.model) > bound(found, dtype)  # it is not the base before it was quantised


def test_only_what_is_quantised_is_dequantised() -> None:
    plain = nn.Linear(3, 4)
    assert dequantise(plain) is plain


class _Quantised:
    """A family whose model comes with the linear layers of its LLM quantised, but for the first block's query."""

    def __init__(self, family: Any, kind: str) -> None:
        self.family, self.kind = family, kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self.family, name)

    def load_model(self, device: torch.device, quantization: None) -> Any:
        import bitsandbytes as bnb

        model = self.family.load_model(device)
        for name, linear in list(model.named_modules()):
            if not isinstance(linear, nn.Linear) or "language_model" not in name or ".0.self_attn.q_proj" in name:
                continue
            shape = (linear.in_features, linear.out_features, linear.bias is not None)
            if self.kind == "nf4":
                made = bnb.nn.Linear4bit(*shape, compute_dtype=linear.weight.dtype, quant_type="nf4")
                made.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", module=made)
            else:
                made = bnb.nn.Linear8bitLt(*shape, has_fp16_weights=False)
                made.weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
            made.bias = linear.bias
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, made.to(device))
        return model


def test_a_merged_model_is_what_load_gives(tmp_path: Path) -> None:
    """Against `vlmft.load`, which is what users compare with."""
    trained = trained_on("lora_llm", "fp32")
    folder = save_trained(trained, tmp_path)
    found = load_merged(open_saved(folder), CPU)[0]
    assert apart(found, load(folder)[0]) <= bound(found, torch.float32)
