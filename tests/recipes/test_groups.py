from collections import Counter
from typing import Any

import pytest

from tests.recipes.expected import LLM_BIASES, LLM_NORMS, PEFT, SHIPPED, TOWER, TOWER_NORMS
from tests.recipes.training import trained_recipe
from tests.support import compose, policy, with_policies, with_recipe
from vlmft.recipes.groups import parameter_groups
from vlmft.train import TrainConfig

LR = 1e-3
DECAY = 0.05
UNDECAYED_TOWER = {
    *(f"{norm}.weight" for norm in TOWER_NORMS),
    *(name for name in TOWER if name.endswith(".bias")),
}
UNDECAYED_PROJECTOR = {"ln_q.weight", "mlp.0.bias", "mlp.2.bias"}
UNDECAYED_LLM = {*LLM_BIASES, *(f"{norm}.weight" for norm in LLM_NORMS)}


def groups(config: TrainConfig, model: Any = None) -> list[dict[str, Any]]:
    model = model or with_recipe(config)
    return parameter_groups(model, config.recipe, config.model, LR, DECAY)


def settings(config: TrainConfig, model: Any = None) -> dict[str, tuple[str, float, float]]:
    """name -> (component, lr, weight decay); each name and its parameter in exactly one group."""
    model = model or with_recipe(config)
    made = groups(config, model)
    parameters = dict(model.named_parameters())
    found = {}
    for group in made:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            assert parameters[name] is parameter
            assert name not in found
            found[name] = (group["component"], group["lr"], group["weight_decay"])
    assert max(Counter(id(p) for group in made for p in group["params"]).values()) == 1
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}
    return found


@pytest.mark.parametrize("recipe", SHIPPED)
def test_each_trained_parameter_is_in_one_group_with_its_components_rate(recipe: str) -> None:
    expected, trained = SHIPPED[recipe], trained_recipe(recipe)
    found = settings(trained.config, trained.model)
    for component in ("vision_tower", "projector", "llm"):
        factor = (expected.tower_factor or 0.0) if component == "vision_tower" else 1.0
        for name in getattr(expected, component):
            assert found.pop(name)[:2] == (component, pytest.approx(LR * factor)), name
    assert found == {}


def test_norms_biases_and_other_vectors_take_no_decay() -> None:
    found = settings(compose("recipe=fft"))
    merger = {f"model.visual.merger.{tensor}" for tensor in UNDECAYED_PROJECTOR}
    undecayed = {name for name, (_, _, decay) in found.items() if decay == 0}
    assert undecayed == UNDECAYED_TOWER | merger | UNDECAYED_LLM
    assert {decay for _, _, decay in found.values()} == {0.0, DECAY}


def test_the_same_holds_for_the_copies_beside_adapters() -> None:
    found = settings(compose("recipe=ln_vt_lora_llm"))
    undecayed = {name for name, (_, _, decay) in found.items() if decay == 0}
    merger = {f"{PEFT}model.visual.merger.modules_to_save.default.{tensor}" for tensor in UNDECAYED_PROJECTOR}
    assert undecayed == merger | {f"{PEFT}{norm}.modules_to_save.default.weight" for norm in TOWER_NORMS}


def test_a_two_dimensional_norm_takes_no_decay_either() -> None:
    import torch

    config = compose("recipe=fft")
    model = with_recipe(config)
    norm = torch.nn.LayerNorm((4, 4))
    model.model.visual.blocks[0].add_module("wide", norm)
    found = settings(config, model)
    assert found["model.visual.blocks.0.wide.weight"][2] == 0.0


def test_the_magnitudes_of_dora_take_no_decay() -> None:
    config = with_policies(compose("recipe=projector"), llm=policy("lora", dora=True))
    found = settings(config)
    magnitudes = {decay for name, (_, _, decay) in found.items() if "lora_magnitude_vector" in name}
    assert magnitudes == {0.0}


def test_a_full_tower_around_a_full_projector_keeps_both_rates_beside_adapters() -> None:
    # PEFT then wraps model.visual as a whole; the projector lies inside the wrapper.
    config = with_policies(compose("recipe=lora_llm"), vision_tower=policy("full", lr_factor=0.1))
    found = settings(config)
    inside = f"{PEFT}model.visual.modules_to_save.default."
    assert found[f"{inside}merger.mlp.0.weight"] == ("projector", LR, DECAY)
    assert found[f"{inside}merger.ln_q.weight"] == ("projector", LR, 0.0)
    assert found[f"{inside}blocks.0.attn.qkv.weight"] == ("vision_tower", pytest.approx(LR / 10), DECAY)
    assert Counter(component for component, _, _ in found.values()) == {"vision_tower": 25, "projector": 5, "llm": 28}


def test_the_highest_rate_comes_first() -> None:
    # transformers logs the first group's rate.
    rates = [group["lr"] for group in groups(compose("recipe=lora_vt_llm"))]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == LR
