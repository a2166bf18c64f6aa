"""Write pictures of one shape with a pair, a rated answer, a solution or a class each.

The files: dataset.json, eval.json and images/*.png.
"""

import json
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vlmft.data.demo.shapes_files import BACKGROUNDS, COLOURS, PictureWriter

QUESTION = "What colour is the shape?"
THINK_FIRST = "Think between <think> and </think>, then answer with one word between <answer> and </answer>."

_Row = dict[str, Any]
T = TypeVar("T")


def write_pairs(folder: Path, train_samples: int, eval_samples: int, image_size: int, seed: int) -> None:
    """Fill `folder` with preference pairs. The same parameters give the same files."""

    def row(colour: str, random: np.random.Generator) -> _Row:
        return {"prompt": f"<image>\n{QUESTION}", "chosen": colour, "rejected": _another(colour, random)}

    _write(folder, (train_samples, eval_samples), image_size, seed, row)


def write_rated(folder: Path, train_samples: int, eval_samples: int, image_size: int, seed: int) -> None:
    """Fill `folder` with single answers, every other one bad. The same parameters give the same files."""
    labels = cycle((True, False))

    def row(colour: str, random: np.random.Generator) -> _Row:
        good = next(labels)
        completion = colour if good else _another(colour, random)
        return {"prompt": f"<image>\n{QUESTION}", "completion": completion, "label": good}

    _write(folder, (train_samples, eval_samples), image_size, seed, row)


def write_solutions(folder: Path, train_samples: int, eval_samples: int, image_size: int, seed: int) -> None:
    """Fill `folder` with conversations whose last turn is the solution. The same parameters give the same files."""

    def row(colour: str, _: np.random.Generator) -> _Row:
        solution = f"<think>The shape is {colour}.</think>\n\n<answer>{colour}</answer>"
        turns = [{"from": "human", "value": f"{QUESTION} {THINK_FIRST}"}, {"from": "gpt", "value": solution}]
        return {"conversations": turns}

    _write(folder, (train_samples, eval_samples), image_size, seed, row)


def write_labels(folder: Path, train_samples: int, eval_samples: int, image_size: int, seed: int) -> None:
    """Fill `folder` with classes. The same parameters give the same files."""
    options = "\n".join(f"{number}. {colour}" for number, colour in enumerate(COLOURS))

    def row(colour: str, _: np.random.Generator) -> _Row:
        return {"prompt": f"Question: {QUESTION}\nOptions:\n{options}", "label": colour}

    _write(folder, (train_samples, eval_samples), image_size, seed, row)


def _another(colour: str, random: np.random.Generator) -> str:
    """A wrong colour."""
    others = [other for other in COLOURS if other != colour]
    return others[int(random.integers(len(others)))]


def balanced(random: np.random.Generator, choices: tuple[T, ...], number: int) -> list[T]:
    """`number` choices, each as often as any other up to one, in random order."""
    rounds = [random.permutation(len(choices)) for _ in range(-(-number // len(choices)))]
    return [choices[int(index)] for index in np.concatenate(rounds)[:number]]


def _write(
    folder: Path,
    samples: tuple[int, int],
    image_size: int,
    seed: int,
    row: Callable[[str, np.random.Generator], _Row],
) -> None:
    (folder / "images").mkdir()
    random = np.random.default_rng(seed)
    writer = PictureWriter(folder, image_size, random)
    for file, prefix, number in zip(("dataset.json", "eval.json"), ("train", "eval"), samples, strict=True):
        colours = balanced(random, tuple(COLOURS), number)
        backgrounds = balanced(random, tuple(BACKGROUNDS), number)
        rows = []
        for index, (colour, background) in enumerate(zip(colours, backgrounds, strict=True)):
            name = f"{prefix}-{index:05d}"
            image = writer.picture(name, colour, background)
            rows.append({"id": name, "image": image, **row(colour, random)})
        (folder / file).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
