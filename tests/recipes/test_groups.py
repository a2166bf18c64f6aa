from collections import Counter
from typing import Any

import pytest

from tests.recipes.expected import (
    LLM_BIASES,
    LLM_LINEAR,
    LLM_NORMS,
    PEFT,
    SHIPPED,
    TOWER,
    TOWER_LINEAR,
    TOWER_NORMS,
)
from tests.recipes.training import trained_recipe
from tests.support import compose, policy, with_policies, with_recipe
from vlmft.errors import ConfigError
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


@pytest.mark.parametrize("recipe", sorted(SHIPPED.keys() - {"custom"}))
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


def test_a_rate_itself_replaces_the_factor() -> None:
    found = settings(compose("recipe=fft", "recipe.vision_tower.lr=3e-6", "recipe.vision_tower.lr_factor=null"))
    assert {lr for component, lr, _ in found.values() if component == "vision_tower"} == {3e-6}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe.llm.lr=1e-3"], "recipe.llm: lr and lr_factor are two rates for it; set one of them, and the other"),
        (["recipe.llm.lr_factor=null"], "recipe.llm: neither lr nor lr_factor is given; set one of them"),
        (["recipe.rates=[{match: mlp}]"], "recipe.rates.0: match='mlp': needs lr_factor or lr, and only one of them"),
        (["recipe.rates=[{match: '(', lr: 1}]"], "recipe.rates.0: match='(' is no regular expression: "),
    ],
)
def test_two_rates_or_none_are_refused(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    with pytest.raises(AssertionError, match="exit code 2"):
        compose("recipe=fft", *words)
    assert message in capsys.readouterr().err


def test_earlier_blocks_train_slower() -> None:
    """Before the first block comes one factor more; what stands behind the last has the full rate."""
    found = settings(compose("recipe=fft", "recipe.vision_tower.layer_decay=0.5", "recipe.llm.layer_decay=0.1"))
    rates = {name: lr for name, (_, lr, _) in found.items()}
    tower = LR / 10
    assert rates["model.visual.patch_embed.proj.weight"] == pytest.approx(tower / 4)
    assert rates["model.visual.blocks.0.attn.qkv.weight"] == pytest.approx(tower / 2)
    assert rates["model.visual.blocks.1.attn.qkv.bias"] == pytest.approx(tower)
    assert rates["model.visual.merger.ln_q.weight"] == LR
    assert rates["model.language_model.embed_tokens.weight"] == pytest.approx(LR / 100)
    assert rates["model.language_model.layers.0.mlp.up_proj.weight"] == pytest.approx(LR / 10)
    assert rates["model.language_model.norm.weight"] == LR


def test_earlier_blocks_train_slower_beside_adapters_too() -> None:
    found = settings(
        compose("recipe=fft_vt_lora_llm", "recipe.vision_tower.layer_decay=0.5", "recipe.llm.layer_decay=0.5")
    )
    inside = f"{PEFT}model.visual.modules_to_save.default."
    assert found[f"{inside}blocks.0.norm1.weight"][1] == pytest.approx(LR / 20)
    assert found[f"{inside}patch_embed.proj.weight"][1] == pytest.approx(LR / 40)
    assert found[f"{inside}merger.ln_q.weight"][1] == LR
    adapter = f"{PEFT}model.language_model.layers.{{}}.mlp.up_proj.lora_B.default.weight"
    assert [found[adapter.format(block)][1] for block in (0, 1)] == [pytest.approx(LR / 2), LR]


def test_a_pattern_gives_weights_a_rate_of_their_own() -> None:
    config = compose(
        "recipe=fft", "recipe.rates=[{match: 'visual.*norm', lr: 7e-7}, {match: embed_tokens, lr_factor: 0.5}]"
    )
    found = settings(config)
    assert {name for name, (_, lr, _) in found.items() if lr == 7e-7} == {f"{norm}.weight" for norm in TOWER_NORMS}
    assert [name for name, (_, lr, _) in found.items() if lr == LR / 2] == ["model.language_model.embed_tokens.weight"]


def test_two_patterns_for_one_weight_are_refused_and_so_is_one_for_none() -> None:
    rates = "[{match: norm1, lr: 1e-5}, {match: 'blocks.0.norm', lr: 1e-6}, {match: nothing, lr: 1}]"
    with pytest.raises(ConfigError) as raised:
        settings(compose("recipe=fft", f"recipe.rates={rates}"))
    assert raised.value.problems == (
        "recipe.rates: 'norm1' and 'blocks.0.norm' are two rates for model.visual.blocks.0.norm1.weight; "
        "make one of them match less",
        "recipe.rates: 'nothing' matches no trained weight; some are model.visual.patch_embed.proj.weight, "
        "model.visual.blocks.0.norm1.weight, model.visual.blocks.0.norm2.weight",
    )


def test_the_custom_recipe_has_its_written_rates() -> None:
    found = settings(compose("recipe=custom"))
    adapter = f"{PEFT}model.{{}}.lora_A.default.weight"
    rate = {
        key: found[adapter.format(key)][1]
        for key in (
            "visual.blocks.0.attn.qkv",
            "visual.blocks.1.attn.qkv",
            "language_model.layers.0.mlp.up_proj",
            "language_model.layers.1.mlp.up_proj",
        )
    }
    assert list(rate.values()) == [pytest.approx(LR * factor) for factor in (0.09, 0.1, 0.5, 1.0)]


def test_matrices_of_hidden_layers_are_told_apart() -> None:
    made = groups(compose("recipe=fft"))
    matrices = {name for group in made if group["is_matrix"] for name in group["names"]}
    linear = {f"{layer}.weight" for layer in (*TOWER_LINEAR, *LLM_LINEAR)}
    assert matrices == linear | {"model.visual.merger.mlp.0.weight", "model.visual.merger.mlp.2.weight"}
