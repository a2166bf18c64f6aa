"""The classes of the data: which there are, how many samples each has, and a stream that gives each its share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlmft.data.mixture import Mixture, MixturePart
from vlmft.data.problems import SampleError
from vlmft.data.spec import DatasetSpec
from vlmft.data.split import RowArray
from vlmft.errors import ConfigError, DataError
from vlmft.types import Classes, Labels

_LISTED = 20  # samples named in one error


def classes_of(entries: Mapping[str, DatasetSpec]) -> Classes:
    """The classes that all entries have, in the same order.

    Raises:
        ConfigError: an entry has none, or two have others; names both.
    """
    found = {name: spec.classes for name, spec in entries.items()}
    if without := [name for name, classes in found.items() if classes is None]:
        raise ConfigError(
            f"dataset: the samples of {', '.join(without)} have no classes; trainer=classification takes entries of "
            "ClassificationDataset, such as demo_classification, or of ImageFolderDataset with task=classification"
        )
    (first, expected), *others = ((name, classes) for name, classes in found.items() if classes is not None)
    problems = [
        f"dataset: {first} has {_described(expected)}, {name} has {_described(classes)}; give every entry the same "
        "classes in the same order"
        for name, classes in others
        if classes != expected
    ]
    ConfigError.raise_if(problems)
    return expected


def _described(classes: Classes) -> str:
    kind = "several of the classes" if classes.multi else "one of the classes"
    return f"{kind} {', '.join(classes.names)}"


@dataclass(frozen=True)
class LabelledPart:
    """A part of the training data with the class numbers of each of its rows."""

    part: MixturePart
    rows: RowArray
    """Those that an epoch visits at all."""
    numbers: list[tuple[int, ...]]


def read_labels(mixture: Mixture, classes: Classes, max_bad_samples: int = 0) -> list[LabelledPart]:
    """Read the labels of all training samples; no medium is looked at.

    Raises:
        DataError: more than `max_bad_samples` rows cannot be read or have no classes; lists them.
    """
    parts: list[LabelledPart] = []
    problems: list[str] = []
    for part, (source, visited) in zip(mixture.parts, mixture.visited, strict=True):
        rows: list[int] = []
        numbers: list[tuple[int, ...]] = []
        for row in map(int, visited):
            try:
                target = source.target(row)
            except SampleError as error:
                problems.append(str(error))
                continue
            if not isinstance(target, Labels):
                problems.append(f"{source.sample_id(row)}: it has no class; trainer=classification learns from classes")
                continue
            rows.append(row)
            numbers.append(classes.numbers(target))
        parts.append(LabelledPart(part, np.asarray(rows, dtype=np.int64), numbers))
    if len(problems) > max_bad_samples:
        more = [f"{len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
        raise DataError(*problems[:_LISTED], *more)
    return parts


def count_classes(parts: Sequence[LabelledPart], classes: Classes) -> dict[str, int]:
    """How many training samples have each class; every class is there, also an empty one."""
    counts = np.zeros(len(classes.names), dtype=np.int64)
    for part in parts:
        for own in part.numbers:
            counts[list(own)] += 1
    return {name: int(count) for name, count in zip(classes.names, counts, strict=True)}


def by_class(
    parts: Sequence[LabelledPart], counts: Mapping[str, int], shares: Mapping[str, float], seed: int
) -> Mixture:
    """A stream in which every stretch holds each class's share, whatever the entries; a pass is as long as before.

    A class of few samples comes round more often: each has its own epochs, shuffled anew each time. Of several labels,
    a sample stands for its rarest; samples of no class keep their share of the data.

    Args:
        counts: of the training samples by class, see `count_classes`.
        shares: by class, relative to each other.

    Raises:
        ConfigError: a class has no sample; or entries have weights, too.
    """
    if weighted := [part.part.source.name for part in parts if part.part.weight is not None]:
        raise ConfigError(
            f"trainer.sampler: gives each class its share of the stream, and dataset.{weighted[0]}.weight an entry; "
            "leave the weights out, or take trainer/sampler=none"
        )
    if empty := [name for name, count in counts.items() if not count]:
        raise ConfigError(
            f"trainer.sampler: there is no training sample to be drawn for {', '.join(empty)}; add some, take the "
            "class out of labels, or take trainer/sampler=none"
        )
    groups = _groups(parts, list(counts.values()))
    visits = {number: sum(len(rows) * _passes(part) for part, rows in members) for number, members in groups.items()}
    classless = visits.get(-1, 0.0) / sum(visits.values())
    given = {number: share for number, share in enumerate(shares[name] for name in counts) if number in groups}
    wanted = {number: (1 - classless) * share / sum(given.values()) for number, share in given.items()} | {
        -1: classless
    }
    return Mixture(
        [
            MixturePart(
                part.part.source,
                _passes(part),
                rows,
                wanted[number] * len(rows) * _passes(part) / visits[number],
            )
            for number, members in sorted(groups.items())
            for part, rows in members
        ],
        seed,
    )


def _passes(part: LabelledPart) -> float:
    """How often an epoch visits each of `part.rows`: below 1, these are the share already."""
    return max(part.part.factor, 1.0)


def _groups(parts: Sequence[LabelledPart], rarity: Sequence[int]) -> dict[int, list[tuple[LabelledPart, RowArray]]]:
    """The rows that stand for each class, by its number; -1: those of no class."""
    groups: dict[int, list[tuple[LabelledPart, RowArray]]] = {}
    for part in parts:
        stands_for = np.array([min(own, key=lambda n: (rarity[n], n), default=-1) for own in part.numbers], dtype=int)
        for number in sorted({*stands_for.tolist()}):
            groups.setdefault(number, []).append((part, part.rows[stands_for == number]))
    return groups
