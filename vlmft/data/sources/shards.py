"""Many files as one table, each of which is a table by itself. Few are open at a time, whatever their number."""

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from vlmft.cache import cache_dir, make_once
from vlmft.data.hashing import Hashes
from vlmft.data.sources.find_shards import Shard, ShardFiles
from vlmft.data.sources.index import IndexOf
from vlmft.data.sources.indexing import make_all
from vlmft.data.sources.reading import FileState
from vlmft.data.sources.rows import HashedTable, OutlinedTable, RowSource, Table
from vlmft.data.spec import Rows
from vlmft.errors import DataError

_OPEN = 32  # shards whose tables a process keeps; the files and indexes that they read have bounds of their own


class ShardTable(Table, HashedTable, Protocol):
    """The rows of one shard. Their ids are unlike those of any other shard."""

    @property
    def state(self) -> FileState:
        """Of the file, when it was opened."""
        ...

    @property
    def window(self) -> int | None:
        """Rows that may be read in any order with ease; None: any number."""
        ...


class Opener(Protocol):
    """Opens shards of one kind; may be pickled."""

    def index_of(self, shard: Shard) -> IndexOf:
        """The index that opening needs."""
        ...

    def open(self, shard: Shard) -> ShardTable:
        """Open a shard. Raises `DataError` where it cannot be used."""
        ...


class Shards:
    """The rows of all files of a set, one file after the other.

    Raises:
        DataError: files cannot be used, or hold no row.
        StorageError: their indexes cannot be kept.
    """

    def __init__(self, files: ShardFiles, opener: Opener) -> None:
        self.path = files.path
        self._files, self._opener = files.shards, opener
        make_all([opener.index_of(shard) for shard in files.shards])
        counts: list[int] = []
        self._states: list[FileState] = []
        windows: list[int] = []
        digest = hashlib.sha256()
        for shard in files.shards:
            table = opener.open(shard)
            counts.append(len(table))
            self._states.append(table.state)
            windows += [table.window] if table.window else []
            digest.update(json.dumps([shard.label, table.fingerprint()]).encode())
        self._ends = np.cumsum(counts)
        if not len(self):
            raise DataError(f"{self.path}: holds no sample; expected at least one")
        self.sha256 = digest.hexdigest()
        self.window = min(windows, default=None)
        """Rows that may be read in any order with ease; None: any number."""
        self._start()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_table"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _start(self) -> None:
        self._table = lru_cache(_OPEN)(self._opened)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def shards(self) -> Sequence[int]:
        """See `Table.shards`."""
        counts: list[int] = np.diff(self._ends, prepend=0).tolist()
        return counts

    def value(self, row: int) -> Any:
        """See `Table.value`."""
        table, own = self._of(row)
        return table.value(own)

    def outline(self, row: int) -> Any:
        """See `OutlinedTable`."""
        table, own = self._of(row)
        return table.outline(own) if isinstance(table, OutlinedTable) else table.value(own)

    def place(self, row: int) -> str:
        """See `Table.place`; rows are counted in their own file."""
        table, own = self._of(row)
        return table.place(own)

    def own_id(self, row: int) -> str | None:
        """See `Table.own_id`."""
        table, own = self._of(row)
        return table.own_id(own)

    def id_hashes(self, name: str, rows: Rows) -> Hashes:
        """See `HashedTable`."""
        wanted = np.asarray(rows, np.int64)
        numbers = np.searchsorted(self._ends, wanted, side="right")
        order = np.argsort(numbers, kind="stable")  # the rows of a shard together
        hashes = np.empty(len(wanted), np.uint64)
        for group in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1) if len(wanted) else ():
            number = int(numbers[group[0]])
            hashes[group] = self._table(number).id_hashes(name, wanted[group] - self._first(number))
        return hashes

    def fingerprint(self) -> dict[str, str | int]:
        """`sha256` of the shards' labels and fingerprints, and number of `rows`."""
        return {"sha256": self.sha256, "rows": len(self)}

    def refuse_duplicate_ids(self, source: RowSource) -> None:
        """As `RowSource.refuse_duplicate_ids`, once for each state of the files: it looks at every id of the set."""
        shards = zip(self._files, self._states, strict=True)
        indexes = [str(self._opener.index_of(shard).folder(state)) for shard, state in shards]
        of_all = hashlib.blake2b(json.dumps([source.name, indexes]).encode(), digest_size=16).hexdigest()
        mark = cache_dir() / "indexes" / "unique" / of_all
        if not mark.is_dir():
            source.refuse_duplicate_ids()
            make_once(mark, lambda made: None)

    def _of(self, row: int) -> tuple[ShardTable, int]:
        number = int(np.searchsorted(self._ends, row, side="right"))
        return self._table(number), row - self._first(number)

    def _first(self, number: int) -> int:
        return int(self._ends[number - 1]) if number else 0

    def _opened(self, number: int) -> ShardTable:
        shard = self._files[number]
        table = self._opener.open(shard)
        self._states[number].expect(table.state, shard.path)
        return table
