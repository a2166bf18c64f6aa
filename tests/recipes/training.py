"""Three real optimiser steps under a recipe, shared by the tests that look at what came of them."""

import json
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from tests.recipes.expected import DISTINCT
from tests.support import CPU, PROJECT, compose, make_batches, model_inputs, read_llava, tiny, with_recipe, write_llava
from vlmft.encoding.collate import Batch
from vlmft.models import Qwen25VL
from vlmft.recipes.groups import parameter_groups
from vlmft.recipes.saved import hash_weights, save
from vlmft.train import TrainConfig
from vlmft.training.loss import supervised_loss

RECIPES = sorted(path.stem for path in (PROJECT / "conf/recipe").glob("*.yaml"))
_MARKS = {recipe: () if recipe in (*DISTINCT, "lora_llm_int8") else (pytest.mark.slow,) for recipe in RECIPES}
EACH = [pytest.param(recipe, marks=_MARKS[recipe]) for recipe in RECIPES]
"""Every recipe; one that trains the same as another, with other values, is a slow test."""
IN_BOTH_PRECISIONS = [
    *(pytest.param(recipe, "fp32") for recipe in RECIPES),
    *(pytest.param(recipe, "bf16", marks=_MARKS[recipe]) for recipe in RECIPES),
]
"""(recipe, precision); as `EACH`, but in fp32 none is slow."""


@dataclass(frozen=True)
class Trained:
    """A model after three steps, and its weights before them. Shared between tests: look, do not touch."""

    config: TrainConfig
    model: Any
    before: dict[str, torch.Tensor]
    losses: tuple[float, ...] = ()

    @property
    def trainable(self) -> set[str]:
        return {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def moved(self) -> set[str]:
        return {name for name, p in self.model.named_parameters() if not torch.equal(p, self.before[name])}


@cache
def batches() -> list[Batch]:
    """Three micro-batches of two samples, with a picture in each."""
    with TemporaryDirectory() as folder:
        return make_batches(read_llava(write_llava(Path(folder))))


def shipped(recipe: str, precision: str = "fp32") -> TrainConfig:
    """A shipped recipe's config; Hydra, which takes longer than three steps, composes it once for all precisions."""
    return compose(f"recipe={recipe}").model_copy(update={"precision": precision})


@cache
def trained_recipe(recipe: str, precision: str = "fp32") -> Trained:
    """A shipped recipe after three steps."""
    return train(shipped(recipe, precision))


def train(config: TrainConfig, model: Any = None, steps: int = 3) -> Trained:
    """Train without weight decay, so that what moves was moved by a gradient."""
    torch.manual_seed(0)
    model = with_recipe(config) if model is None else model
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(model, config.recipe, config.model, config.optim.lr, 0.0))
    model.train()
    losses = []
    for batch in batches()[:steps]:
        losses.append(float(backward(model, batch)))
        optimizer.step()
        optimizer.zero_grad()
    return Trained(config, model.eval(), before, tuple(losses))


def backward(model: Any, batch: Batch) -> torch.Tensor:
    loss = supervised_loss(model, model_inputs(batch), batch.labels) / 10
    loss.backward()
    return loss.detach()


def save_trained(trained: Trained, folder: Path, unreached: tuple[str, ...] = (), **provenance: Any) -> Path:
    """Save as a worker does."""
    config = trained.config
    hashes = hash_weights(config.model.folder())
    processor = config.model.load_processor()
    save(folder, trained.model, processor, config.model, config.recipe, config.precision, hashes, unreached, provenance)
    return folder


def untied(config: TrainConfig, folder: Path) -> TrainConfig:
    """The config on a copy of the tiny checkpoint whose head is a weight of its own."""
    shutil.copytree(tiny().folder(), folder)
    described = json.loads((folder / "config.json").read_text())
    described["tie_word_embeddings"] = described["text_config"]["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(described))
    model = tiny().load_model(CPU)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 0.01)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    model.save_pretrained(folder)
    spec = Qwen25VL(**(dict(tiny()) | {"path": str(folder)}))
    return config.model_copy(update={"model": spec})
