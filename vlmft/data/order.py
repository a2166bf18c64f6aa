"""Which visit comes when: pure functions of a position, so ranks, loader processes and resumed runs share no state."""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from vlmft.data.hashing import Hashes, id_hashes, mix, mix_each, salt
from vlmft.data.spec import Source
from vlmft.data.split import RowArray

Visit: TypeAlias = tuple[int, int, int]
"""(row, copy, key): the `copy`-th visit to `row` within its epoch; `key` (64 bits) seeds what is drawn for it."""

_KEPT = 2  # a loader looks ahead over the end of an epoch, or window, while the steps before it still train
_BLOCK = 4096  # positions whose parts are worked out at once
_SHARDS = salt("shards")


class Shuffled:
    """Any order will do: all visits of an epoch, by the hash of (sample id, seed, epoch, copy)."""

    def __init__(self, rows: RowArray, copies: Hashes, hashes: Hashes, seed: int) -> None:
        self._rows, self._copies, self._hashes, self._seed = rows, copies, hashes, seed
        self._epochs: dict[int, tuple[RowArray, Hashes]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def at(self, epoch: int, offset: int) -> Visit:
        """The visit at `offset` of `epoch`."""
        visit, key = self.place(epoch, offset)
        return int(self._rows[visit]), int(self._copies[visit]), key

    def place(self, epoch: int, offset: int) -> tuple[int, int]:
        """(number of the visit as it was given, its key) at `offset` of `epoch`."""
        order, keys = self.epoch(epoch)
        visit = int(order[offset])
        return visit, int(keys[visit])

    def epoch(self, epoch: int) -> tuple[RowArray, Hashes]:
        """The visits' numbers in the order of `epoch`, and the key of each visit."""
        if epoch not in self._epochs:
            keys = mix_each(mix(self._hashes, self._seed, epoch), self._copies)
            _keep(self._epochs, epoch, (np.argsort(keys, kind="stable"), keys))
        return self._epochs[epoch]


class Windowed:
    """Rows are best read in the order of their files: shards in another order each epoch, rows shuffled in windows.

    Each pass over the rows goes through the shards in another order, and cuts the stream of their rows into windows of
    `source.shuffle_window`; within a window rows come by the hash of (sample id, seed, epoch, copy).

    Args:
        passes: the rows of each pass that an epoch makes, each ascending: all of them, the last maybe a part.
    """

    def __init__(self, source: Source, passes: Sequence[RowArray], seed: int) -> None:
        assert source.shards is not None
        self._source, self._seed = source, seed
        self._passes = [rows for rows in passes if len(rows)]
        ends = np.cumsum(np.asarray(source.shards, dtype=np.int64))
        # Where each shard's rows begin and end in each pass.
        self._cuts = [np.concatenate([[0], np.searchsorted(rows, ends)]) for rows in self._passes]
        self._starts = np.concatenate([[0], np.cumsum([len(rows) for rows in self._passes])])
        self._windows: dict[tuple[int, int, int], tuple[RowArray, Hashes]] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def at(self, epoch: int, offset: int) -> Visit:
        """The visit at `offset` of `epoch`."""
        copy = int(np.searchsorted(self._starts, offset, side="right")) - 1
        window, place = divmod(offset - int(self._starts[copy]), self._source.shuffle_window)
        rows, keys = self._window(epoch, copy, window)
        return int(rows[place]), copy, int(keys[place])

    def _window(self, epoch: int, copy: int, number: int) -> tuple[RowArray, Hashes]:
        if (epoch, copy, number) not in self._windows:
            rows = self._rows_of(epoch, copy, number)
            keys = mix(id_hashes(self._source, rows), self._seed, epoch)
            keys = mix_each(keys, np.full(len(keys), copy, dtype=np.uint64))
            order = np.argsort(keys, kind="stable")
            _keep(self._windows, (epoch, copy, number), (rows[order], keys[order]))
        return self._windows[epoch, copy, number]

    def _rows_of(self, epoch: int, copy: int, number: int) -> RowArray:
        """The rows of a window, shard after shard."""
        cuts, size = self._cuts[copy], self._source.shuffle_window
        drawn = mix(np.arange(len(cuts) - 1, dtype=np.uint64), _SHARDS, self._seed, epoch, copy)
        shards = np.argsort(drawn, kind="stable")
        ends = np.cumsum(cuts[shards + 1] - cuts[shards])
        start, stop = number * size, min((number + 1) * size, int(ends[-1]))
        pieces = []
        for place in range(int(np.searchsorted(ends, start, side="right")), len(shards)):
            shard, end = int(shards[place]), int(ends[place])
            begin = end - int(cuts[shard + 1] - cuts[shard])
            if begin >= stop:
                break
            first = int(cuts[shard]) + max(start - begin, 0)
            last = int(cuts[shard]) + min(stop, end) - begin
            pieces.append(self._passes[copy][first:last])
        return np.concatenate(pieces)


class Schedule:
    """Which part comes at which position, so that every stretch of the stream holds each part's share of it.

    The visit number k (from 0) of a part with share p stands at the time (k + 1/2) / p, counted in positions; positions
    follow the times, equal times the parts' order. A stretch of n positions thus holds n * p visits of the part, give
    or take one for each other part.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        total = math.fsum(weights)
        self.shares = tuple(weight / total for weight in weights)
        self._blocks: dict[int, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = {}

    def at(self, position: int) -> tuple[int, int]:
        """(part, how many visits to it came before) at `position`."""
        block = max(0, position // _BLOCK - 1)
        while self._before(block + 1) <= position:
            block += 1
        while self._before(block) > position:
            block -= 1
        parts, visits = self._block(block)
        place = position - self._before(block)
        return int(parts[place]), int(visits[place])

    def visits(self, stop: int) -> list[int]:
        """How many of the first `stop` positions are visits to each part."""
        block = max(0, stop // _BLOCK - 1)
        while self._before(block + 1) <= stop:
            block += 1
        while self._before(block) > stop:
            block -= 1
        parts, _ = self._block(block)
        rest = np.bincount(parts[: stop - self._before(block)], minlength=len(self.shares))
        return [self._count(part, block * _BLOCK) + int(rest[part]) for part in range(len(self.shares))]

    def _time(self, part: int, visit: int) -> float:
        return (visit + 0.5) / self.shares[part]

    def _count(self, part: int, time: float) -> int:
        """Visits to `part` before `time`, by the very comparison that orders them."""
        count = max(0, round(time * self.shares[part]))
        while count and self._time(part, count - 1) >= time:
            count -= 1
        while self._time(part, count) < time:
            count += 1
        return count

    def _before(self, block: int) -> int:
        return sum(self._count(part, block * _BLOCK) for part in range(len(self.shares)))

    def _block(self, block: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The visits with times in the block, in order: part and number of each."""
        if block not in self._blocks:
            ranges = [
                np.arange(self._count(part, block * _BLOCK), self._count(part, (block + 1) * _BLOCK))
                for part in range(len(self.shares))
            ]
            parts = np.repeat(np.arange(len(ranges)), [len(visits) for visits in ranges])
            times = np.concatenate([(visits + 0.5) / share for visits, share in zip(ranges, self.shares, strict=True)])
            order = np.lexsort((parts, times))
            _keep(self._blocks, block, (parts[order], np.concatenate(ranges)[order]))
        return self._blocks[block]


def _keep(cache: dict[Any, Any], key: Any, value: Any) -> None:
    cache[key] = value
    while len(cache) > _KEPT:
        cache.pop(next(iter(cache)))
