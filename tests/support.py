"""What tests of several layers share: specs composed from the real conf/, the tiny model, a few samples on disk."""

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import yaml

from vlmft.config.app import run_app
from vlmft.config.spec import validate
from vlmft.data import LLaVADataset
from vlmft.encoding.collate import Batch, Collator
from vlmft.encoding.encoder import Encoder
from vlmft.models import ModelSpec
from vlmft.recipes import Policy, Recipe
from vlmft.recipes.apply import apply_recipe
from vlmft.recipes.base import load_base
from vlmft.recipes.dtypes import compute_in, torch_dtype
from vlmft.train import TrainConfig
from vlmft.types import Sample

PROJECT = Path(__file__).parents[1]
CPU = torch.device("cpu")

CLOCKED = (
    *("samples_per_s", "tokens_per_s", "vision_tokens_per_s", "supervised_tokens_per_s"),
    *("data_wait", "peak_memory_bytes", "useful_tflops"),
)
"""Figures of a line that no two runs have in common."""


@cache
def compose(*argv: str) -> TrainConfig:
    """The checked config of `python -m vlmft.train *argv`, from the project's own conf/ and registry/."""
    composed: list[TrainConfig] = []
    code = run_app("train", TrainConfig, lambda config, _: composed.append(config) or 0, argv=list(argv))
    assert code == 0, f"{argv} ended with exit code {code}; its errors are on stderr"
    return composed[0]


def policy(name: str, **changes: Any) -> Policy:
    """The policy of conf/recipe/policy/<name>.yaml, with some values changed."""
    values = yaml.safe_load((PROJECT / f"conf/recipe/policy/{name}.yaml").read_text())
    return validate(Policy, values | changes)


def with_policies(config: TrainConfig, **policies: Policy) -> TrainConfig:
    """The config with other policies in its recipe, checked again."""
    recipe = Recipe(**(dict(config.recipe) | policies))
    return config.model_copy(update={"recipe": recipe})


def tiny() -> ModelSpec:
    """The spec of the tiny Qwen2.5-VL."""
    return compose().model


@cache
def tiny_processor() -> Any:
    """The tiny checkpoint's processor, shared: load another one to change it."""
    return tiny().load_processor()


def encoding(max_tokens: int | None = None, spec: ModelSpec | None = None) -> tuple[Encoder, Collator]:
    """Encoder and collator of a checkpoint; of the tiny default where none is given."""
    spec, processor = (tiny(), tiny_processor()) if spec in (None, tiny()) else (spec, spec.load_processor())
    return Encoder(spec, processor, max_tokens), Collator(spec, processor)


def with_recipe(config: TrainConfig) -> Any:
    """The config's model, loaded from disk, with the config's recipe and precision applied, as a worker does it."""
    dtype = torch_dtype(config.precision)
    model = load_base(config.model, config.recipe, dtype, CPU)
    model = apply_recipe(model, config.recipe, config.model, dtype)
    compute_in(model, dtype, CPU)
    return model


def noise(height: int, width: int, seed: int = 0) -> PIL.Image.Image:
    """A picture whose every pixel is its own."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def save_noise(path: Path, height: int, width: int, seed: int = 0, **options: Any) -> Path:
    """Write a picture of noise; `path`'s suffix is its format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(height, width, seed).save(path, **options)
    return path


def write_llava(folder: Path) -> Path:
    """Write six LLaVA rows with their pictures; return the path of the JSON file.

    One picture, two of different sizes, none, several turns, a picture in a later turn, a system turn.
    """
    for number, (height, width) in enumerate([(56, 56), (56, 112), (84, 56)]):
        save_noise(folder / f"{number}.png", height, width, seed=number)
    rows = [
        _row("one", ["0.png"], "<image>\nWhat colour is the shape?", "red"),
        _row("two", ["1.png", "2.png"], "<image>\n<image>\nWhich digit is written here?", "seven"),
        _row("none", [], "The quick brown fox?", "jumps over the lazy dog"),
        _row("turns", ["2.png"], "<image>\nName the colour.", "blue", "And the background?", "a black background"),
        _row("later", ["1.png"], "Are you a helpful assistant?", "yes", "<image>\nName the digit.", "nine"),
        _row("system", ["0.png"], "<image>\nAnswer with one word.", "no", system="Answer with one word."),
    ]
    path = folder / "dataset.json"
    path.write_text(json.dumps(rows))
    return path


def _row(row_id: str, images: list[str], *said: str, system: str | None = None) -> dict[str, Any]:
    turns = [{"from": "system", "value": system}] if system else []
    turns += [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(said)]
    return {"id": row_id, "conversations": turns} | ({"image": images} if images else {})


def read_llava(path: Path) -> list[Sample]:
    """The samples of a LLaVA file, read as a run reads them."""
    source = LLaVADataset(data_path=path).open("mine")
    return [source[row] for row in range(len(source))]


def make_batches(samples: Sequence[Sample], size: int = 2) -> list[Batch]:
    """The samples, in order, as micro-batches of `size`."""
    encoder, collator = encoding()
    encoded = [encoder.encode(sample) for sample in samples]
    return [collator(encoded[i : i + size]) for i in range(0, len(encoded), size)]


def model_inputs(batch: Batch) -> dict[str, torch.Tensor]:
    """What the tiny model's forward takes of a batch."""
    return tiny().model_inputs(tiny_processor(), batch.inputs)


@torch.no_grad()
def logits(model: Any, batch: Batch) -> torch.Tensor:
    """The logits [B, S, V] that `model` gives in eval mode; its mode is put back."""
    training = model.training
    model.eval()
    found: torch.Tensor = model(**model_inputs(batch), use_cache=False).logits
    model.train(training)
    return found


def literally(text: str) -> str:
    """A `match=` pattern for exactly this text somewhere in a message."""
    return re.escape(text)
