"""Parquet files, row by row. They are read by row groups, so the last few groups are kept decoded.

The order of training keeps to a window of rows (`window`) whose groups are kept together; a row outside of them costs
the decoding of its whole group.
"""

import hashlib
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlmft.data.hashing import Hashes, hash_texts
from vlmft.data.sources.columns import check_columns, renamed
from vlmft.data.sources.find_shards import Shard
from vlmft.data.sources.ids import Ids, IdsWriter, id_text, numbered
from vlmft.data.sources.index import Array, IndexOf, OpenIndex, compact
from vlmft.data.sources.reading import FileState, open_to_read
from vlmft.data.spec import Rows
from vlmft.errors import DataError

KEPT_BYTES = 256 * 2**20
"""Decoded row groups that a reading thread keeps, at most; a larger one is kept alone."""

MAX_GROUP_BYTES = 2**30
"""A larger row group is refused: reading a single row of it takes as much memory."""

_ID_ROWS = 65536  # rows whose ids are read at once


@dataclass(frozen=True)
class ParquetOpener:
    """Opens Parquet files of the entry `name`; `columns` are (ours, theirs)."""

    name: str
    columns: tuple[tuple[str, str], ...]

    def index_of(self, shard: Shard) -> IndexOf:
        """See `Opener`."""
        build = partial(_arrays, name=self.name, label=shard.label, columns=self.columns)
        return IndexOf(shard.path, f"parquet of {self.name!r}, {shard.label!r}, {self.columns!r}", build)

    def open(self, shard: Shard) -> "ParquetRows":
        """See `Opener`."""
        return ParquetRows(shard, self.name, OpenIndex(self.index_of(shard), keep=True), self.columns)


class ParquetRows:
    """The rows of one Parquet file; pictures are their encoded bytes."""

    shards = None

    def __init__(self, shard: Shard, name: str, index: OpenIndex, columns: tuple[tuple[str, str], ...]) -> None:
        self.path, self.name, self.label, self._index, self._columns = shard.path, name, shard.label, index, columns

    @property
    def state(self) -> FileState:
        """See `ShardTable`."""
        return self._index.state

    @property
    def window(self) -> int | None:
        """Rows whose groups take half of `KEPT_BYTES`: a window may begin and end inside of one."""
        size = int(self._index.now.notes["bytes"])
        return max(1, KEPT_BYTES // 2 * len(self) // size) if len(self) else None

    def __len__(self) -> int:
        return len(self._index.now.arrays["id_ends"])

    def value(self, row: int) -> Any:
        """See `Table.value`."""
        ends = self._index.now.arrays["group_ends"]
        group = int(np.searchsorted(ends, row, side="right"))
        first = int(ends[group - 1]) if group else 0
        found = _decoded.group(self.path, self.state, group).slice(row - first, 1).to_pylist()
        return renamed(found[0], dict(self._columns))

    def place(self, row: int) -> str:
        """See `Table.place`; a Parquet file has no lines."""
        return f"{self.path}, row {row}"

    def own_id(self, row: int) -> str:
        """See `Table.own_id`."""
        own = Ids(self._index.now.arrays)[row]
        return numbered(row, self.label) if own is None else own

    def id_hashes(self, name: str, rows: Rows) -> Hashes:
        """See `HashedTable`."""
        if name == self.name:
            return Ids(self._index.now.arrays).hashes(rows)
        return hash_texts(f"{name}/{self.own_id(int(row))}" for row in rows)

    def fingerprint(self) -> dict[str, str | int]:
        """`sha256` of the file's footer, which says where everything stands and how large it is; number of `rows`."""
        return {"sha256": self._index.now.notes["sha256"], "rows": len(self)}


class _Decoded(threading.local):
    """The row groups that a thread has decoded last."""

    def __init__(self) -> None:
        self.tables: dict[tuple[Path, FileState, int], tuple[pa.Table, int]] = {}

    def group(self, path: Path, state: FileState, number: int) -> pa.Table:
        """A row group of a file that is still in `state`."""
        key = (path, state, number)
        found = self.tables.pop(key, None)
        if found is None:
            table = _read_group(path, state, number)
            found = table, table.nbytes
            while self.tables and found[1] + sum(size for _, size in self.tables.values()) > KEPT_BYTES:
                del self.tables[next(iter(self.tables))]
        self.tables[key] = found  # what was asked for last goes last
        return found[0]


_decoded = _Decoded()


def _read_group(path: Path, state: FileState, number: int) -> pa.Table:
    state.expect(FileState.of(path), path)
    with _opened(path) as file:
        table = file.read_row_group(number, use_threads=False)
    state.expect(FileState.of(path), path)
    return table


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: is no Parquet file, or damaged: {error}; make or copy it again") from error


def _arrays(
    path: Path, name: str, label: str, columns: tuple[tuple[str, str], ...]
) -> tuple[Mapping[str, Array], Mapping[str, str]]:
    """Read the footer and the ids of a file."""
    ids, renames = IdsWriter(name, label), dict(columns)
    with _opened(path) as file:
        check_columns(renames, file.schema_arrow.names, str(path))
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        for number, group in enumerate(groups):
            if group.total_byte_size > MAX_GROUP_BYTES:
                raise DataError(
                    f"{path}: row group {number} has {group.num_rows} rows in {group.total_byte_size / 1e9:.1f} GB; "
                    f"at most {MAX_GROUP_BYTES / 1e9:.1f} GB are read at once: write it with a smaller row_group_size"
                )
        key = renames.get("id", "id")
        if key in file.schema_arrow.names:
            for batch in file.iter_batches(_ID_ROWS, columns=[key], use_threads=False):
                ids.add([id_text(own) for own in batch.column(0).to_pylist()])
        else:
            ids.add([None] * file.metadata.num_rows)
    footer = _footer(path)
    arrays = {"group_ends": compact(np.cumsum([group.num_rows for group in groups], dtype=np.int64))}
    notes = {"sha256": hashlib.sha256(footer).hexdigest(), "bytes": str(sum(g.total_byte_size for g in groups))}
    return {**arrays, **ids.arrays()}, notes


def _footer(path: Path) -> bytes:
    """The last bytes of a file, which say how long they are: ..., length (4 bytes), PAR1."""
    with open_to_read(path) as file:
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, os.SEEK_END)
        return file.read()
