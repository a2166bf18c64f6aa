"""The order of training: which sample comes at which position of an endless stream of epochs.

Every random choice depends on (seed, epoch, sample id, copy) alone: not on the ranks, the workers, the
batch size, or what else is in the mixture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from vlmft.data.hashing import Hashes, id_hashes
from vlmft.data.order import Schedule, Shuffled, Windowed
from vlmft.data.spec import Rows, Source
from vlmft.data.split import RowArray, as_fraction, part_of, select_rows
from vlmft.errors import ConfigError
from vlmft.types import Sample

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class MixturePart:
    """One entry of a mixture, or some of its rows: `rows` of `source`, each visited `factor` times in an epoch.

    2.5 visits every row twice, and the same half of them a third time. `weight` is its share of the stream, relative to
    the other parts' weights.
    """

    source: Source
    factor: float
    rows: Rows
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class SampleRef:
    """One visit to a sample. `copy` counts its visits within the epoch; `key` (64 bits) seeds what is drawn for it."""

    part: int
    row: int
    epoch: int
    copy: int
    key: int


class Mixture:
    """The stream of training samples; `len()` is the visits that an epoch's factors make, over all parts.

    All parts are shuffled together, and an epoch visits each as often as its factor says. Where they have weights, or a
    `temperature` is given, they are interleaved instead, each with its share of every stretch of the stream and its own
    epochs: a small part with a large weight comes round more often. So are parts that are read in the order of their
    files, where the shares are what the factors make of them.

    Args:
        temperature: shares are weights (visits of an epoch, where there are none) to the power of 1 / temperature.

    Raises:
        ConfigError: there is no part, a part has no row, a factor is not above 0, or some parts have weights and others
            not.
    """

    def __init__(self, parts: Sequence[MixturePart], seed: int, temperature: float | None = None) -> None:
        if not parts:
            raise ConfigError("the mixture is empty; name at least one dataset")
        self.parts = tuple(parts)
        self.seed = seed
        weights = self._weights(temperature)
        in_order = [part for part in self.parts if part.source.shards is not None]
        self._together: _Together | None = None
        if weights is None and not in_order:
            self._together = _Together(self.parts, seed)
            self._length = len(self._together)
            shares = [visits / self._length for visits in self._together.visits_of_parts(self._length)]
            self.shares = tuple(self._by_entry(shares).values())
            return
        self._orders = [_order(part, seed) for part in self.parts]
        sizes = [len(order) for order in self._orders]
        self._length = sum(sizes)
        exponent = 1 / (temperature or 1.0)
        self._schedule = Schedule([weight**exponent for weight in weights or sizes])
        self.shares = tuple(self._by_entry(self._schedule.shares).values())

    shares: tuple[float, ...]
    """Each entry's share of the stream; several parts may be of one entry."""

    def __len__(self) -> int:
        return self._length

    def at(self, position: int) -> SampleRef:
        """Return what comes at `position`, counted from 0 over all epochs."""
        if self._together is not None:
            return self._together.at(position)
        part, visit = self._schedule.at(position)
        epoch, offset = divmod(visit, len(self._orders[part]))
        row, copy, key = self._orders[part].at(epoch, offset)
        return SampleRef(part, row, epoch, copy, key)

    def visits(self, stop: int) -> dict[str, int]:
        """How many of the first `stop` positions are visits to each entry."""
        found = self._schedule.visits(stop) if self._together is None else self._together.visits_of_parts(stop)
        return self._by_entry(found)

    def sample_id(self, ref: SampleRef) -> str:
        """Return the id of the sample that `ref` visits."""
        return self.parts[ref.part].source.sample_id(ref.row)

    def read(self, ref: SampleRef) -> Sample:
        """Read the sample that `ref` visits. Raises `SampleError` where it cannot be used."""
        return self.parts[ref.part].source[ref.row]

    @property
    def visited(self) -> list[tuple[Source, Rows]]:
        """The rows of each part that an epoch visits at all: what there is to check."""
        return [(part.source, select_rows(part.source, part.rows, part.factor)) for part in self.parts]

    def _by_entry(self, of_parts: Sequence[N]) -> dict[str, N]:
        """What is said of each part, summed by entry."""
        found: dict[str, N] = {}
        for part, value in zip(self.parts, of_parts, strict=True):
            found[part.source.name] = found[part.source.name] + value if part.source.name in found else value
        return found

    def _weights(self, temperature: float | None) -> list[float] | None:
        """The parts' weights, or their sizes; None where they are shuffled together."""
        weights = [part.weight for part in self.parts if part.weight is not None]
        given, lacking = (
            list(dict.fromkeys(part.source.name for part in self.parts if (part.weight is None) == without))
            for without in (False, True)
        )
        if given and lacking:
            raise ConfigError(
                f"{', '.join(given)} {'has' if len(given) == 1 else 'have'} a weight, and {', '.join(lacking)} "
                f"{'has' if len(lacking) == 1 else 'have'} none; give every entry of the mixture one "
                f"(dataset.{lacking[0]}.weight=1), or none"
            )
        if given:
            return weights
        return None if temperature is None else [len(part.rows) * part.factor for part in self.parts]


class _Together:
    """All parts shuffled as one."""

    def __init__(self, parts: Sequence[MixturePart], seed: int) -> None:
        visits = [_visits(part) for part in parts]
        self._part = np.repeat(np.arange(len(parts), dtype=np.int32), [len(rows) for rows, _, _ in visits])
        self._row = np.concatenate([rows for rows, _, _ in visits])
        self._copy = np.concatenate([copies for _, copies, _ in visits])
        self._parts = len(parts)
        self._order = Shuffled(self._row, self._copy, np.concatenate([hashes for _, _, hashes in visits]), seed)

    def __len__(self) -> int:
        return len(self._row)

    def at(self, position: int) -> SampleRef:
        epoch, offset = divmod(position, len(self))
        visit, key = self._order.place(epoch, offset)
        return SampleRef(int(self._part[visit]), int(self._row[visit]), epoch, int(self._copy[visit]), key)

    def visits_of_parts(self, stop: int) -> list[int]:
        epochs, offset = divmod(stop, len(self))
        found = epochs * np.bincount(self._part, minlength=self._parts)
        if offset:
            order, _ = self._order.epoch(epochs)
            found = found + np.bincount(self._part[order[:offset]], minlength=self._parts)
        return [int(count) for count in found]


def _order(part: MixturePart, seed: int) -> Shuffled | Windowed:
    if part.source.shards is not None:
        return Windowed(part.source, _passes(part), seed)
    return Shuffled(*_visits(part), seed)


def _passes(part: MixturePart) -> list[RowArray]:
    """The rows of each pass that an epoch makes over a part: all of them, the last maybe a share."""
    name, factor = part.source.name, as_fraction(part.factor)
    if factor <= 0:
        raise ConfigError(f"{name}: the factor should be above 0; found {part.factor}")
    if not len(part.rows):
        raise ConfigError(f"{name}: no row is left to train on; lower holdout or leave the entry out")
    whole = int(factor)
    passes = [np.asarray(part.rows, dtype=np.int64)] * whole
    if share := factor - whole:
        passes.append(part_of(part.source, part.rows, share))
    return passes


def _visits(part: MixturePart) -> tuple[RowArray, Hashes, Hashes]:
    """Return row, copy and id hash of each visit that one epoch makes."""
    passes = _passes(part)
    rows = np.concatenate(passes)
    copies = np.repeat(np.arange(len(passes), dtype=np.uint64), [len(chosen) for chosen in passes])
    distinct, position = np.unique(rows, return_inverse=True)
    return rows, copies, id_hashes(part.source, distinct)[position]
