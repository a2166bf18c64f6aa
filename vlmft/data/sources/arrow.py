"""Rows of a Hugging Face dataset, memory-mapped. Nothing in them is decoded: a picture is its bytes, or its path."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import ClassLabel, Dataset, LargeList, List

from vlmft.data.hashing import Hashes, hash_texts
from vlmft.data.sources.columns import check_columns, renamed
from vlmft.data.sources.ids import Ids, IdsWriter, id_text
from vlmft.data.sources.index import Array, IndexOf
from vlmft.data.sources.indexing import make_all
from vlmft.data.sources.reading import open_to_read
from vlmft.data.spec import Rows
from vlmft.errors import DataError

_ID_ROWS = 65536  # rows whose ids are read at once
_BLOCK = 2**22  # bytes of a file that are hashed at once


class ArrowRows:
    """The rows of one split.

    Args:
        path: what the split was opened by, for messages.
        name: the entry's.
        columns: ours: theirs.

    Raises:
        DataError: there is no row, or no such column.
    """

    shards = None

    def __init__(self, dataset: Dataset, path: Path, split: str, name: str, columns: Mapping[str, str]) -> None:
        self.path = path / split
        if not len(dataset):
            raise DataError(f"{path}: its split {split!r} holds no sample; expected at least one")
        check_columns(columns, dataset.column_names, str(path))
        self._place, self._name, self._columns = f"{path}, split {split}", name, dict(columns)
        self._rows = dataset.with_format("arrow")
        self._features = {key: value for key, value in dataset.features.items() if _has_labels(value)}
        files = [IndexOf(Path(file["filename"]).absolute(), "sha256", _hash) for file in dataset.cache_files]
        make_all(files)
        parts = [[of.get().notes["sha256"] for of in files], split, str(dataset.features)]
        self._sha256 = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        key = columns.get("id", "id")
        ids = self._rows.select_columns([key]) if key in dataset.column_names else None
        self._ids = Ids(_ids(ids, len(dataset), name))

    def __len__(self) -> int:
        return len(self._rows)

    def value(self, row: int) -> Any:
        """See `Table.value`; the number of a class is replaced by its name."""
        (found,) = self._rows[row].to_pylist()
        for key, feature in self._features.items():
            found[key] = _named(found[key], feature)
        return renamed(found, self._columns)

    def outline(self, row: int) -> Any:
        """See `OutlinedTable`."""
        table = self._rows[row]
        found = {key: _outlined(table.column(key)[0]) for key in table.column_names}
        for key, feature in self._features.items():
            found[key] = _named(found[key], feature)
        return renamed(found, self._columns)

    def place(self, row: int) -> str:
        """See `Table.place`; a dataset has no lines."""
        return f"{self._place}, row {row}"

    def own_id(self, row: int) -> str | None:
        """See `Table.own_id`."""
        return self._ids[row]

    def id_hashes(self, name: str, rows: Rows) -> Hashes:
        """See `HashedTable`."""
        if name == self._name:
            return self._ids.hashes(rows)
        return hash_texts(f"{name}/{row if (own := self._ids[row]) is None else own}" for row in map(int, rows))

    def fingerprint(self) -> dict[str, str | int]:
        """`sha256` of the Arrow files' own, the split and the columns' types, and number of `rows`."""
        return {"sha256": self._sha256, "rows": len(self)}


def _ids(rows: Dataset | None, count: int, name: str) -> Mapping[str, Array]:
    """The rows' ids, as `Ids` reads them; of all `count` rows, where there is no column of them."""
    writer = IdsWriter(name, None)
    if rows is None:
        writer.add([None] * count)
    else:
        for table in rows.iter(_ID_ROWS):
            writer.add([id_text(own) for own in table.column(0).to_pylist()])
    return writer.arrays()


def _has_labels(feature: Any) -> bool:
    if isinstance(feature, dict):
        return any(map(_has_labels, feature.values()))
    return isinstance(feature, ClassLabel) or (isinstance(feature, List | LargeList) and _has_labels(feature.feature))


def _named(value: Any, feature: Any) -> Any:
    """A value with the names of classes in place of their numbers; -1 says that there is none."""
    if value is None:
        return None
    if isinstance(feature, ClassLabel):
        return None if value == -1 else feature.int2str(value)
    if isinstance(feature, dict):
        return {key: _named(item, feature[key]) for key, item in value.items()}
    if isinstance(feature, List | LargeList):
        return [_named(item, feature.feature) for item in value]
    return value


def _outlined(scalar: pa.Scalar) -> Any:
    """A value with the size of each piece of bytes in its place; the bytes themselves are not looked at."""
    if not scalar.is_valid:
        return None
    if isinstance(scalar, pa.BinaryScalar) and not isinstance(scalar, pa.StringScalar):
        return str(scalar.as_buffer().size).encode()
    if isinstance(scalar, pa.StructScalar):
        return {key: _outlined(item) for key, item in scalar.items()}
    if isinstance(scalar, pa.ListScalar):
        return [_outlined(item) for item in scalar.values]
    return scalar.as_py()


def _hash(path: Path) -> tuple[Mapping[str, Array], Mapping[str, str]]:
    sha256 = hashlib.sha256()
    with open_to_read(path) as file:
        while block := file.read(_BLOCK):
            sha256.update(block)
    return {}, {"sha256": sha256.hexdigest()}
