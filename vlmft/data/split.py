"""Which rows train and which are held out: drawn by hash of the sample's id, never overlapping."""

import math
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from vlmft.data.hashing import id_hashes, mix, salt
from vlmft.data.sources.indexing import cores
from vlmft.data.spec import Rows, Source
from vlmft.errors import ConfigError, DataError

RowArray: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

_LISTED = 5  # samples named in one message
_WORTH_A_PROCESS = 20_000  # rows whose contents take longer to look at than a process to start


@runtime_checkable
class Hinted(Protocol):
    """A source that can tell most rows apart without reading their media."""

    def content_hint(self, row: int) -> bytes:
        """A digest that is equal where `content_key` is."""
        ...


def split_holdout(source: Source, share: float) -> tuple[RowArray, RowArray]:
    """Split a source's rows into (training, held out), both in file order.

    A sample is held out where its id's hash falls below `share`, so rows that are added later move no other.

    Raises:
        ConfigError: `share` lies outside [0, 1), or leaves one side empty.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"holdout should be at least 0 and below 1; found {share}")
    rows = np.arange(len(source))
    if share == 0:
        return rows, rows[:0]
    drawn = mix(id_hashes(source, rows), salt("holdout")) / 2.0**64
    held_out = drawn < share
    if held_out.any() and not held_out.all():
        return rows[~held_out], rows[held_out]
    if held_out.all():
        where = f"holds out all {len(source)} samples of {source.name}, so none is left to train on"
        fix = f"lower holdout to {_floor(drawn.max())}" if len(source) > 1 else "add samples"
    else:
        where = f"holds out none of the {len(source)} samples of {source.name}"
        fix = f"raise holdout to {_ceil(drawn.min())} or more" if len(source) > 1 else "add samples"
    raise ConfigError(f"holdout={share} {where}; {fix}, or name held-out data with eval_dataset=")


def select_rows(source: Source, rows: Rows, factor: float) -> RowArray:
    """Return the rows that an epoch visits at all under `factor`, in file order.

    Below 1 these are exactly `round(factor * len(rows))` rows, at least one, the same in every run: those
    whose ids have the smallest hashes.
    """
    return np.asarray(rows, dtype=np.int64) if factor >= 1 else part_of(source, rows, as_fraction(factor))


def part_of(source: Source, rows: Rows, share: Fraction) -> RowArray:
    """Return exactly `round(share * len(rows))` rows, at least one, in file order."""
    return _smallest(source, rows, max(1, round(share * len(rows))), "fraction")


def subset(source: Source, rows: Rows, n: int) -> RowArray:
    """Return at most `n` of the rows, in file order and the same in every run: a cap for evaluation."""
    return _smallest(source, rows, n, "subset")


def as_fraction(factor: float) -> Fraction:
    """Read a factor as it was meant: 0.1 * 30 is 3, and no 3.0000000000000004."""
    return Fraction(factor).limit_denominator(1_000_000)


def refuse_overlap(train: Iterable[tuple[Source, Rows]], held_out: Sequence[tuple[Source, Rows]]) -> None:
    """Raise where a held-out sample is trained on: the same row of the same file, or the same texts and pictures.

    Raises:
        DataError: lists some of the samples.
    """
    places: dict[tuple[str, int], str] = {}
    alike: dict[bytes, list[tuple[Source, int]]] = {}
    for source, rows in held_out:
        file = _file_of(source)
        for row, hint in zip(map(int, rows), _hints(source, rows), strict=True):
            places[file, row] = source.sample_id(row)
            alike.setdefault(hint, []).append((source, row))
    if not places:
        return
    found: list[str] = []
    for source, rows in train:
        file = _file_of(source)
        for row, hint in zip(map(int, rows), _hints(source, rows), strict=True):
            if twin := places.get((file, row)) or _twin(source, row, alike.get(hint, ())):
                found.append(f"{source.sample_id(row)} = {twin}")
    if found:
        more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        raise DataError(
            f"{len(found)} training samples are also held out (training = held out): "
            f"{', '.join(found[:_LISTED])}{more}; "
            "remove them from one side, or draw both from one entry with holdout= and no sample twice"
        )


def _file_of(source: Source) -> str:
    """What makes a row's number mean the same row. Sets of files of one folder may be different sets."""
    return str(source.data_file.resolve()) if source.shards is None else f"{source.data_file} of {id(source)}"


def _hints(source: Source, rows: Rows) -> Iterator[bytes]:
    """The content hint of each row, or its content key; of many rows by several processes, at some 30 us a row each."""
    processes = min(cores(), len(rows) // _WORTH_A_PROCESS)
    if processes < 2:
        yield from _hints_of(source, rows)
        return
    pieces = np.array_split(np.asarray(rows, dtype=np.int64), len(rows) // _WORTH_A_PROCESS * 4)
    # Forks: they have the source already.
    with ProcessPoolExecutor(
        processes, multiprocessing.get_context("fork"), initializer=_take, initargs=(source,)
    ) as pool:
        for hints in pool.map(_hints_of_taken, pieces):
            yield from hints


def _hints_of(source: Source, rows: Rows) -> list[bytes]:
    hint = source.content_hint if isinstance(source, Hinted) else source.content_key
    return [hint(int(row)) for row in rows]


_taken: list[Source] = []


def _take(source: Source) -> None:
    _taken[:] = [source]


def _hints_of_taken(rows: Rows) -> list[bytes]:
    return _hints_of(_taken[0], rows)


def _twin(source: Source, row: int, alike: Sequence[tuple[Source, int]]) -> str:
    """The id of the last of `alike` that says and shows the same as `row`, or nothing."""
    if not alike:
        return ""
    content = source.content_key(row)
    return next((other.sample_id(twin) for other, twin in reversed(alike) if other.content_key(twin) == content), "")


def _smallest(source: Source, rows: Rows, n: int, purpose: str) -> RowArray:
    chosen = np.asarray(rows, dtype=np.int64)
    if n >= len(chosen):
        return chosen
    order = np.argsort(mix(id_hashes(source, chosen), salt(purpose)), kind="stable")
    return np.sort(chosen[order[:n]])


def _ceil(share: float) -> float:
    return math.floor(share * 1000 + 1) / 1000


def _floor(share: float) -> float:
    return math.floor(share * 1000) / 1000
