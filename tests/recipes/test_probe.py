from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.recipes.expected import PEFT, SHIPPED, TOWER
from tests.recipes.training import Trained, batches, save_trained, train
from tests.support import CPU, compose, encoding, logits, tiny
from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoder
from vlmft.recipes.apply import apply_recipe
from vlmft.recipes.probe import freeze_unreached
from vlmft.recipes.saved import load
from vlmft.tasks.base import probe_loss
from vlmft.train import TrainConfig

LAST = "model.visual.blocks.1"
BEHIND = tuple(name for name in TOWER if name.startswith(f"{LAST}."))


def probe(model: Any, encoder: Encoder, collator: Collator) -> list[str]:
    return freeze_unreached(model, lambda probed: probe_loss(probed, encoder, collator))


def cut_short(config: TrainConfig) -> Any:
    """A model whose tower is read before its last block, as LLaVA reads its own, with the recipe applied."""
    model = config.model.load_model(CPU)
    model.model.visual.blocks[1].register_forward_hook(lambda module, args, output: args[0])
    return apply_recipe(model, config.recipe, config.model, torch.float32)


@pytest.mark.parametrize("recipe", SHIPPED)
def test_everything_is_reached_in_a_plain_model(recipe: str) -> None:
    # In particular LoRA A, whose first gradient is zero: zero is a path.
    config = compose(f"recipe={recipe}")
    model = apply_recipe(config.model.load_model(CPU), config.recipe, config.model, torch.float32)
    assert probe(model, *encoding()) == []
    assert {name for name, p in model.named_parameters() if p.requires_grad} == SHIPPED[recipe].names
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_block_that_nothing_reads_is_named_and_frozen() -> None:
    assert len(BEHIND) == 12
    model = cut_short(compose("recipe=fft"))
    assert set(probe(model, *encoding())) == set(BEHIND)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == SHIPPED["fft"].names - set(BEHIND)


def test_adapters_that_nothing_reads_are_named_and_frozen() -> None:
    model = cut_short(compose("recipe=lora_vt_llm"))
    found = probe(model, *encoding())
    expected = {name for name in SHIPPED["lora_vt_llm"].vision_tower if name.startswith(f"{PEFT}{LAST}.")}
    assert set(found) == expected and len(expected) == 10


def test_an_unused_layer_in_the_tower() -> None:
    config = compose("recipe=fft")
    model = config.model.load_model(CPU)
    model.model.visual.blocks[0].add_module("spare", nn.Linear(4, 4))
    model = apply_recipe(model, config.recipe, config.model, torch.float32)
    assert probe(model, *encoding()) == [f"model.visual.blocks.0.spare.{kind}" for kind in ("weight", "bias")]


def test_a_zero_gradient_is_a_path() -> None:
    model = nn.ModuleDict({"zero": nn.Linear(2, 1), "none": nn.Linear(2, 1)})
    found = freeze_unreached(model, lambda m: 0.0 * m["zero"](torch.ones(2)).sum())
    assert found == ["none.weight", "none.bias"]
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, False]


def test_a_frozen_weight_is_not_listed() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "frozen": nn.Linear(2, 1).requires_grad_(False)})
    assert freeze_unreached(model, lambda m: m["used"](torch.ones(2)).sum()) == []


@pytest.mark.parametrize("recipe", ["fft", "lora_vt_llm"])
def test_what_nothing_reads_stays_the_bases_own_when_saved_and_loaded(recipe: str, tmp_path: Path) -> None:
    config = compose(f"recipe={recipe}")
    model = cut_short(config)
    unreached = probe(model, *encoding())
    trained = train(config, model)
    assert not trained.moved() & set(unreached)
    loaded, _ = load(save_trained(trained, tmp_path, tuple(unreached)))
    live = dict(loaded.named_parameters())
    base = dict(tiny().load_model(CPU).named_parameters())
    for name, parameter in trained.model.named_parameters():
        assert torch.equal(live[name], parameter), name
    if recipe == "fft":
        assert all(torch.equal(live[name], base[name]) for name in BEHIND)


def test_the_probes_picture_and_video_reach_the_tower() -> None:
    trained = Trained(compose(), tiny().load_model(CPU), {})
    calls: list[int] = []
    trained.model.model.visual.register_forward_hook(lambda *_: calls.append(1))
    probe(trained.model, *encoding())
    assert calls == [1, 1]
    assert logits(trained.model, batches()[0]).isfinite().all()
