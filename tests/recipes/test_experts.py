"""Adapters on a mixture's experts, which are 3-D parameters and no linear layers."""

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer, ParamWrapper

import vlmft
from tests.models.families import FAMILIES
from tests.models.test_matrix import batches, inputs
from tests.recipes.training import Trained, save_trained
from tests.support import CPU, compose, policy, with_policies, with_recipe
from vlmft.errors import ConfigError
from vlmft.recipes.apply import components_of
from vlmft.recipes.merge import load_merged
from vlmft.recipes.policies import Component
from vlmft.recipes.saved import open_saved
from vlmft.train import TrainConfig

FAMILY = next(family for family in FAMILIES if family.name == "qwen3vl_moe")
LAYERS = "model.language_model.layers"
EXPERTS = f"{LAYERS}.1.mlp.experts"
BOTH = (f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.down_proj")
DENSE = {f"{LAYERS}.0.mlp.{name}_proj" for name in ("gate", "up", "down")}
ATTENTION = {f"{LAYERS}.{layer}.self_attn.{side}_proj" for layer in (0, 1) for side in "qkvo"}
ROUTER = f"{LAYERS}.1.mlp.gate.weight"


@cache
def components() -> dict[str, Component]:
    return components_of(FAMILY.spec.skeleton(), FAMILY.spec)


@cache
def shipped() -> TrainConfig:
    return compose("model=tiny_qwen3vl_moe", "recipe=lora_llm")


def config_of(precision: str = "fp32", **changes: Any) -> TrainConfig:
    """Adapters on the LLM, with some values of its policy changed."""
    config = with_policies(shipped(), llm=policy("lora", **changes))
    return config.model_copy(update={"precision": precision})


def trained(**changes: Any) -> Trained:
    """After one step on each of the matrix's batches."""
    config = config_of(**changes)
    torch.manual_seed(0)
    model = with_recipe(config).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    for batch in batches(FAMILY):
        model(**inputs(FAMILY, batch), labels=batch.labels, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return Trained(config, model.eval(), before)


def wrappers(model: Any) -> dict[str, ParamWrapper]:
    """By the name of the parameter that each adapts."""
    return {m.parameter_name: m for m in model.modules() if isinstance(m, ParamWrapper)}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return torch.cat([model(**inputs(FAMILY, b), use_cache=False).logits.flatten(0, 1) for b in batches(FAMILY)])


@pytest.mark.parametrize(
    ("changes", "linear", "experts"),
    [
        ({}, ATTENTION | DENSE, BOTH),
        ({"targets": "mlp"}, DENSE, BOTH),
        ({"targets": "attention"}, ATTENTION, ()),
        ({"targets": "down_proj"}, {f"{LAYERS}.0.mlp.down_proj"}, BOTH[1:]),
        ({"targets": "gate_up_proj"}, set(), BOTH[:1]),
        ({"targets": "*.experts.*"}, set(), BOTH),
        ({"exclude": ["experts"]}, ATTENTION | DENSE, ()),
        ({"last_modules": 3}, {f"{LAYERS}.1.self_attn.o_proj"}, BOTH),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_is_chosen(changes: dict[str, Any], linear: set[str], experts: tuple[str, ...]) -> None:
    found = policy("lora", **changes).select(components()["llm"])
    assert (set(found.adapted), found.experts) == (linear, experts)


def test_only_experts_are_found() -> None:
    assert {name: part.experts for name, part in components().items()} == {
        "vision_tower": (),
        "projector": (),
        "llm": BOTH,
    }
    other = compose("model=tiny_internvl3").model  # whose places in the tower are 3-D parameters, too
    assert any(parameter.ndim == 3 for parameter in other.skeleton().parameters())
    assert not any(part.experts for part in components_of(other.skeleton(), other).values())


@pytest.mark.parametrize("targets", ["mlp", "gate_up_proj"])
def test_experts_learn_and_are_saved_and_merged(targets: str, tmp_path: Path) -> None:
    done = trained(targets=targets, rank=3)
    found = wrappers(done.model)
    assert set(found) == ({"gate_up_proj", "down_proj"} if targets == "mlp" else {"gate_up_proj"})
    for name, (inner, outer) in {"gate_up_proj": (64, 192), "down_proj": (96, 64)}.items():
        if name not in found:
            continue
        sides = found[name].lora_A["default"].weight, found[name].lora_B["default"].weight
        assert [tuple(side.shape) for side in sides] == [(4 * 3, inner), (outer, 4 * 3)]
        delta = found[name].get_delta_weight("default")
        assert delta.shape == (4, outer, inner) and (delta.flatten(1).norm(dim=1) > 0).all()  # every expert was used
        base = dict(done.config.model.load_model(CPU).named_parameters())[f"{EXPERTS}.{name}"]
        assert torch.equal(found[name].get_param(), base)

    expected = logits(done.model)
    assert float((expected - logits(done.config.model.load_model(CPU).eval())).abs().max()) > 0.1
    folder = save_trained(done, tmp_path / "final")
    assert torch.equal(logits(vlmft.load(folder)[0]), expected)
    by_peft = PeftModel.from_pretrained(done.config.model.load_model(CPU), folder).eval()
    torch.testing.assert_close(logits(by_peft), expected, rtol=0, atol=1e-6)

    merged, rounded = load_merged(open_saved(folder), CPU)
    assert rounded is None  # a base in float32
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=2e-5)
    merged.save_pretrained(tmp_path / "merged")
    spec = done.config.model.model_copy(update={"path": str(tmp_path / "merged")})
    assert torch.equal(logits(spec.load_model(CPU).eval()), logits(merged))


def test_the_sum_is_rounded_once_in_a_base_of_bf16(tmp_path: Path) -> None:
    config = config_of("bf16", targets="mlp")
    spec = config.model.model_copy(update={"path": str(tmp_path / "base")})
    config.model.load_model(CPU).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    config.model.load_processor().save_pretrained(tmp_path / "base")
    config = config.model_copy(update={"model": spec})
    model = with_recipe(config)
    sums = {}
    for name, wrapper in wrappers(model).items():
        assert wrapper.get_param().dtype == torch.bfloat16
        left, right = (side["default"].weight for side in (wrapper.lora_B, wrapper.lora_A))
        assert left.dtype == right.dtype == torch.float32
        left.data = torch.randn_like(left) / 100
        wide = wrapper.get_param().float()
        for expert in range(4):  # PEFT keeps the experts' ranks in rows of A one after another, in B taking turns
            wide[expert] += 2 * left[:, expert::4] @ right[expert * 16 : (expert + 1) * 16]
        sums[f"{EXPERTS}.{name}"] = wide
    folder = save_trained(Trained(config, model, {}), tmp_path / "final")
    merged, rounded = load_merged(open_saved(folder), CPU)
    weights = dict(merged.named_parameters())
    assert rounded is not None and 1e-4 < rounded.change < 4e-3
    for name, exact in sums.items():
        assert weights[name].dtype == torch.bfloat16
        # Another order of summing may tip a value that lies between two neighbours.
        assert (weights[name] == exact.bfloat16()).float().mean() > 0.999


def test_a_rank_of_their_own_beside_a_tower_s() -> None:
    config = compose("model=tiny_qwen3vl_moe", "recipe=lora_vt_llm", "recipe.llm.rank=2", "recipe.llm.alpha=6")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = wrappers(with_recipe(config))
    assert {name: (layer.r["default"], layer.scaling["default"]) for name, layer in found.items()} == {
        "gate_up_proj": (2, 3.0),
        "down_proj": (2, 3.0),
    }


def test_the_router_trains_in_full_and_is_frozen_under_adapters() -> None:
    config = compose("model=tiny_qwen3vl_moe", "recipe=fft")
    assert dict(with_recipe(config).named_parameters())[ROUTER].requires_grad
    adapted = dict(with_recipe(config_of()).named_parameters())
    assert not adapted[f"base_model.model.{ROUTER}"].requires_grad


@pytest.mark.parametrize(("base", "exclude"), [("nf4", []), ("int8", ["experts"])])
def test_fewer_bits_are_refused(base: str, exclude: list[str]) -> None:
    message = (
        rf"recipe\.llm\.base: {base} keeps linear layers alone; the experts of this mixture "
        rf"\({EXPERTS}\.gate_up_proj, \.\.\.\) are 3-D parameters, .* take base=null, and precision=bf16"
    )
    with pytest.raises(ConfigError, match=message):
        with_recipe(config_of(base=base, exclude=exclude))


def test_bf16_is_refused_in_a_run_that_computes_in_more() -> None:
    message = r"recipe\.llm\.base: bf16 does not work on the experts of a mixture .* take precision=bf16 and base=null"
    with pytest.raises(ConfigError, match=message):
        with_recipe(config_of(base="bf16"))
    model = with_recipe(config_of("bf16", base="bf16"))
    assert {wrapper.get_param().dtype for wrapper in wrappers(model).values()} == {torch.bfloat16}


@pytest.mark.parametrize(("key", "value", "instead"), [("dora", True, "dora=false"), ("dropout", 0.1, "dropout=0")])
def test_what_peft_cannot_do_on_experts_is_refused(key: str, value: Any, instead: str) -> None:
    message = (
        rf"recipe\.llm\.{key}: does not work on the experts of a mixture \({EXPERTS}\.gate_up_proj, \.\.\.\), which "
        rf"are 3-D parameters; leave them out \(recipe\.llm\.exclude=\[experts\]\), or take {instead}"
    )
    with pytest.raises(ConfigError, match=message):
        policy("lora", **{key: value}).select(components()["llm"])
    assert wrappers(with_recipe(config_of(exclude=["experts"], **{key: value}))) == {}


def test_layers_beside_the_experts_that_are_called_alike_have_adapters_too() -> None:
    """PEFT by itself takes them for the experts that transformers 4 had; where it no longer does, ours need no care."""
    config = with_policies(compose("model=tiny_glm4v_moe", "recipe=lora_llm"), llm=policy("lora", targets="mlp"))
    shared = {f"{LAYERS}.1.mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down")}
    own = with_recipe(config)
    assert adapted(own) == DENSE | shared | set(BOTH)
    plain = get_peft_model(config.model.load_model(CPU), LoraConfig(target_modules=sorted(DENSE | shared)))
    assert adapted(plain) == set(BOTH)


def adapted(model: Any) -> set[str]:
    """What has an adapter, by its name in the unwrapped model."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    names = {f"{n}.{m.parameter_name}" if isinstance(m, ParamWrapper) else n for n, m in layers.items()}
    return {name.removeprefix("base_model.model.").replace(".base_layer", "") for name in names}
