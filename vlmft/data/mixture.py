"""The order of training: which sample comes at which position of an endless stream of epochs.

Every random choice depends on (seed, epoch, sample id, copy) alone: not on the ranks, the workers, the
batch size, or what else is in the mixture.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlmft.data.hashing import Hashes, id_hashes, mix, mix_each
from vlmft.data.spec import Rows, Source
from vlmft.data.split import RowArray, as_fraction, part_of, select_rows
from vlmft.errors import ConfigError
from vlmft.types import Sample

_EPOCHS_KEPT = 2  # a loader looks ahead over the end of an epoch while its first steps still train


@dataclass(frozen=True)
class MixturePart:
    """One entry of a mixture: `rows` of `source`, each visited `factor` times in an epoch.

    2.5 visits every row twice, and the same half of them a third time.
    """

    source: Source
    factor: float
    rows: Rows


@dataclass(frozen=True, slots=True)
class SampleRef:
    """One visit to a sample. `copy` counts its visits within the epoch; `key` (64 bits) seeds what is drawn for it."""

    part: int
    row: int
    epoch: int
    copy: int
    key: int


class Mixture:
    """The stream of training samples; `len()` is the samples of one epoch.

    Raises:
        ConfigError: there is no part, a part has no row, or a factor is not above 0.
    """

    def __init__(self, parts: Sequence[MixturePart], seed: int) -> None:
        if not parts:
            raise ConfigError("the mixture is empty; name at least one dataset")
        self.parts = tuple(parts)
        self.seed = seed
        visits = [_visits(part) for part in parts]
        self._part = np.repeat(np.arange(len(parts), dtype=np.int32), [len(rows) for rows, _, _ in visits])
        self._row = np.concatenate([rows for rows, _, _ in visits])
        self._copy = np.concatenate([copies for _, copies, _ in visits])
        self._hash = np.concatenate([hashes for _, _, hashes in visits])
        self._epochs: dict[int, tuple[RowArray, Hashes]] = {}

    def __len__(self) -> int:
        return len(self._row)

    def at(self, position: int) -> SampleRef:
        """Return what comes at `position`, counted from 0 over all epochs."""
        epoch, offset = divmod(position, len(self))
        order, keys = self._epoch(epoch)
        visit = order[offset]
        return SampleRef(int(self._part[visit]), int(self._row[visit]), epoch, int(self._copy[visit]), int(keys[visit]))

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

    def _epoch(self, epoch: int) -> tuple[RowArray, Hashes]:
        if epoch not in self._epochs:
            keys = mix_each(mix(self._hash, self.seed, epoch), self._copy)
            self._epochs[epoch] = (np.argsort(keys, kind="stable"), keys)
            while len(self._epochs) > _EPOCHS_KEPT:
                self._epochs.pop(next(iter(self._epochs)))
        return self._epochs[epoch]


def _visits(part: MixturePart) -> tuple[RowArray, Hashes, Hashes]:
    """Return row, copy and id hash of each visit that one epoch makes."""
    name, factor = part.source.name, as_fraction(part.factor)
    if factor <= 0:
        raise ConfigError(f"{name}: the factor should be above 0; found {part.factor}")
    if not len(part.rows):
        raise ConfigError(f"{name}: no row is left to train on; lower holdout or leave the entry out")
    whole = int(factor)
    times = [np.asarray(part.rows, dtype=np.int64)] * whole
    if share := factor - whole:
        times.append(part_of(part.source, part.rows, share))
    rows = np.concatenate(times)
    copies = np.repeat(np.arange(len(times), dtype=np.uint64), [len(chosen) for chosen in times])
    distinct, position = np.unique(rows, return_inverse=True)
    return rows, copies, id_hashes(part.source, distinct)[position]
