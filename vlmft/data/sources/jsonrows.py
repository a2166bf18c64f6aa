"""JSON lists and JSON Lines, row by row: each is read from the file, and parsed, when it is asked for.

What a process holds of a file is its index. A million parsed rows would be some gigabytes of small Python objects,
which every loader process would come to copy.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vlmft.data.hashing import Hashes, hash_texts
from vlmft.data.sources.find_shards import Shard
from vlmft.data.sources.ids import Ids, IdsWriter, numbered
from vlmft.data.sources.index import SMALL, Array, IndexOf, OpenIndex, compact
from vlmft.data.sources.jsonlist import scan_list
from vlmft.data.sources.jsonscan import parse, scan_lines
from vlmft.data.sources.reading import FileState, open_to_read, read_at
from vlmft.data.spec import Rows
from vlmft.errors import DataError

LINES_SUFFIXES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class JsonOpener:
    """Opens shards of JSON Lines of the entry `name`."""

    name: str

    def index_of(self, shard: Shard) -> IndexOf:
        """See `Opener`."""
        return _index_of(shard.path, self.name, shard.label)

    def open(self, shard: Shard) -> "JsonRows":
        """See `Opener`."""
        return JsonRows(shard.path, self.name, shard.label, OpenIndex(self.index_of(shard), keep=True))


class JsonRows:
    """The rows of one file, as it was when it was opened.

    Args:
        name: the entry whose ids the index has the hashes of.
        label: what stands before the number of a row without an id, where the file is one of several.
    """

    shards = window = None

    def __init__(self, path: Path, name: str, label: str | None, index: OpenIndex) -> None:
        self.path, self.name, self.label, self._index = path, name, label, index

    @property
    def state(self) -> FileState:
        """See `ShardTable`."""
        return self._index.state

    def __len__(self) -> int:
        return len(self._index.now.arrays["starts"])

    def value(self, row: int) -> Any:
        """Read and parse one row. Raises `DataError` where the file has changed."""
        arrays = self._index.now.arrays
        raw = read_at(self.path, self._index.state, int(arrays["starts"][row]), int(arrays["lengths"][row]))
        value, _ = parse(self.path, raw.decode().lstrip(" \t\n\r"), line=int(arrays["lines"][row]))
        return value

    def place(self, row: int) -> str:
        """See `Table.place`."""
        return f"{self.path}:{self._index.now.arrays['lines'][row]}, row {row}"

    def own_id(self, row: int) -> str | None:
        """See `Table.own_id`."""
        own = Ids(self._index.now.arrays)[row]
        return numbered(row, self.label) if own is None and self.label is not None else own

    def id_hashes(self, name: str, rows: Rows) -> Hashes:
        """The hashes of the ids that rows have in a run of the entry `name`."""
        if name == self.name:
            return Ids(self._index.now.arrays).hashes(rows)
        return hash_texts(f"{name}/{row if (own := self.own_id(row)) is None else own}" for row in map(int, rows))

    @property
    def sha256(self) -> str:
        """Of the file."""
        return self._index.now.notes["sha256"]

    def fingerprint(self) -> dict[str, str | int]:
        """`sha256` of the file and number of `rows`."""
        return {"sha256": self.sha256, "rows": len(self)}


def read_json_rows(path: Path, name: str = "") -> JsonRows:
    """Read a JSON list, or JSON Lines where the name ends in .jsonl or .ndjson, for the entry `name`.

    Raises:
        DataError: the file cannot be read, is no UTF-8, no valid JSON, no list, or empty.
    """
    index = OpenIndex(_index_of(path.absolute(), name, None), keep=FileState.of(path).size > SMALL)
    rows = JsonRows(path, name, None, index)
    if not len(rows):
        raise DataError(f"{path}: holds no sample; expected at least one")
    return rows


def _index_of(path: Path, name: str, label: str | None) -> IndexOf:
    return IndexOf(path, f"json rows of {name!r}, {label!r}", partial(_arrays, name=name, label=label))


def _arrays(path: Path, name: str, label: str | None) -> tuple[Mapping[str, Array], Mapping[str, str]]:
    """Read a file through."""
    scan = scan_lines if path.suffix.lower() in LINES_SUFFIXES else scan_list
    sha256 = hashlib.sha256()
    ids = IdsWriter(name, label)
    places: dict[str, list[Array]] = {key: [np.empty(0, np.uint8)] for key in ("starts", "lengths", "lines")}
    with open_to_read(path) as file:
        for batch in scan(path, file, sha256):
            ids.add(batch.own_ids)
            for key, numbers in places.items():
                numbers.append(compact(getattr(batch, key)))
    arrays = {key: compact(np.concatenate(numbers)) for key, numbers in places.items()}
    return {**arrays, **ids.arrays()}, {"sha256": sha256.hexdigest()}
