"""The ids of a million rows in two flat arrays, and their hashes in a third."""

from array import array
from collections.abc import Mapping, Sequence
from itertools import accumulate, islice
from typing import Any

import numpy as np

from vlmft.data.hashing import Hashes, digests
from vlmft.data.sources.index import Array, compact
from vlmft.data.spec import Rows


def id_text(found: Any) -> str | None:
    """A row's own id as text; None where it gives none, or none that a file could hold."""
    if isinstance(found, bool) or not isinstance(found, str | int | float):
        return None
    try:
        return str(found).encode().decode() or None
    except UnicodeEncodeError:  # half a character (\ud800): the row is refused, and named by its number
        return None


class IdsWriter:
    """Collects the rows' own ids, one by one.

    Args:
        name: the entry's name, with which the ids in a run begin.
        label: what stands before the number of a row without an id, where its file is one of several.
    """

    def __init__(self, name: str, label: str | None) -> None:
        self._name, self._label = name, label
        self._ids, self._ends, self._digests = bytearray(), array("Q"), bytearray()

    def add(self, own_ids: Sequence[str | None]) -> None:
        """Take the next rows' ids, None where a row has none."""
        rows = range(len(self._ends), len(self._ends) + len(own_ids))
        named = [numbered(row, self._label) if own is None else own for row, own in zip(rows, own_ids, strict=True)]
        self._digests += digests(f"{self._name}/{text}" for text in named)
        encoded = [b"" if own is None else own.encode() for own in own_ids]
        self._ends.extend(islice(accumulate(map(len, encoded), initial=len(self._ids)), 1, None))
        self._ids += b"".join(encoded)

    def arrays(self) -> dict[str, Array]:
        """The arrays that an `Ids` reads."""
        return {
            "ids": np.frombuffer(bytes(self._ids), np.uint8),
            "id_ends": compact(np.array(self._ends, np.uint64)),
            "hashes": np.frombuffer(bytes(self._digests), "<u8"),
        }


class Ids:
    """Reads what an `IdsWriter` wrote."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._ids, self._ends, self._hashes = arrays["ids"], arrays["id_ends"], arrays["hashes"]

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> str | None:
        start = int(self._ends[row - 1]) if row else 0
        return self._ids[start : int(self._ends[row])].tobytes().decode() or None

    def hashes(self, rows: Rows) -> Hashes:
        """The hashes of the rows' ids in a run, as `id_hashes` would make them."""
        return self._hashes[np.asarray(rows, np.int64)].astype(np.uint64)


def numbered(row: int, label: str | None) -> str:
    """What a row without an id is called."""
    return str(row) if label is None else f"{label}/{row}"
