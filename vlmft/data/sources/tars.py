"""Tars of samples, as WebDataset lays them out: files that follow each other and whose names agree up to the first dot.

    000.jpg 000.json 001.0.jpg 001.1.jpg 001.json

Members are read at their offsets, so a tar has to be uncompressed.
"""

import hashlib
import json
import re
import tarfile
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vlmft.data.hashing import Hashes, hash_texts
from vlmft.data.sources.find_shards import Shard
from vlmft.data.sources.ids import Ids, IdsWriter
from vlmft.data.sources.index import Array, IndexOf, OpenIndex, compact
from vlmft.data.sources.reading import FileState, open_to_read, read_at
from vlmft.data.sources.tar_samples import ending_of, is_known, kind_of, sample_row
from vlmft.data.spec import Rows
from vlmft.errors import DataError

_BLOCK = 512
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")
_AGAIN = "make or copy it again"
_PACKED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}


@dataclass(frozen=True)
class TarOpener:
    """Opens tars of the entry `name`. `prompt` and `ignore` are the entry's."""

    name: str
    prompt: str | None
    ignore: tuple[str, ...]

    def index_of(self, shard: Shard) -> IndexOf:
        """See `Opener`."""
        build = partial(_arrays, name=self.name, label=shard.label)
        return IndexOf(shard.path, f"tar of {self.name!r}, {shard.label!r}", build)

    def open(self, shard: Shard) -> "TarRows":
        """See `Opener`."""
        return TarRows(shard, self.name, OpenIndex(self.index_of(shard), keep=True), self.prompt, self.ignore)


class TarRows:
    """The samples of one tar, each a row of its format with the media's bytes in it.

    Raises:
        DataError: a member is of no kind that a sample has.
    """

    shards = window = None

    def __init__(self, shard: Shard, name: str, index: OpenIndex, prompt: str | None, ignore: tuple[str, ...]) -> None:
        self.path, self.name, self.label = shard.path, name, shard.label
        self._index, self._prompt, self._ignore = index, prompt, {ending.lower().lstrip(".") for ending in ignore}
        endings = set(json.loads(index.now.notes["endings"])) - self._ignore
        if unknown := sorted(ending for ending in endings if not is_known(ending)):
            raise DataError(
                f"{self.path}: holds members that end in .{', .'.join(unknown)}; expected pictures, videos, .json, "
                f".txt and .cls: leave others out by ignore: [{', '.join(unknown)}]"
            )

    @property
    def state(self) -> FileState:
        """See `ShardTable`."""
        return self._index.state

    def __len__(self) -> int:
        return len(self._index.now.arrays["firsts"])

    def value(self, row: int) -> Any:
        """Read the members of one sample, and put them together."""
        return self._row(row, lambda suffix, start, size: read_at(self.path, self.state, start, size))

    def outline(self, row: int) -> Any:
        """See `OutlinedTable`: only the texts are read."""

        def outlined(suffix: str, start: int, size: int) -> bytes:
            return str(size).encode() if kind_of(ending_of(suffix)) else read_at(self.path, self.state, start, size)

        return self._row(row, outlined)

    def place(self, row: int) -> str:
        """See `Table.place`; in place of a line, the sample's key."""
        return f"{self.path}:{self.own_id(row).removeprefix(f'{self.label}/')}, row {row}"

    def own_id(self, row: int) -> str:
        """The tar's label and the sample's key."""
        found = Ids(self._index.now.arrays)[row]
        assert found is not None
        return found

    def id_hashes(self, name: str, rows: Rows) -> Hashes:
        """See `HashedTable`."""
        if name == self.name:
            return Ids(self._index.now.arrays).hashes(rows)
        return hash_texts(f"{name}/{self.own_id(int(row))}" for row in rows)

    def fingerprint(self) -> dict[str, str | int]:
        """`sha256` of the members' names and sizes, and number of `rows`. The tar itself may be too large to hash."""
        return {"sha256": self._index.now.notes["sha256"], "rows": len(self)}

    def _row(self, row: int, read: Callable[[str, int, int], bytes]) -> Any:
        arrays = self._index.now.arrays
        first = int(arrays["firsts"][row])
        last = int(arrays["firsts"][row + 1]) if row + 1 < len(self) else len(arrays["starts"])
        members: dict[str, bytes] = {}
        for number in range(first, last):
            begin = int(arrays["suffix_ends"][number - 1]) if number else 0
            suffix = arrays["suffixes"][begin : int(arrays["suffix_ends"][number])].tobytes().decode()
            if ending_of(suffix) not in self._ignore:
                members[suffix] = read(suffix, int(arrays["starts"][number]), int(arrays["sizes"][number]))
        return sample_row(self.own_id(row).rpartition("/")[2], members, self._prompt)


def _arrays(path: Path, name: str, label: str) -> tuple[Mapping[str, Array], Mapping[str, str]]:
    """Read the headers of a tar."""
    ids, sha256 = IdsWriter(name, label), hashlib.sha256()
    keys: list[str | None] = []
    firsts, starts, sizes, suffix_ends, suffixes = array("Q"), array("Q"), array("Q"), array("Q"), bytearray()
    endings: set[str] = set()
    seen: set[str] = set()  # suffixes of the sample at hand
    with open_to_read(path) as file:
        for member in _members(path, file):
            key, suffix = _parts(path, member.name)
            if not keys or keys[-1] != f"{label}/{key}":
                keys.append(f"{label}/{key}")
                firsts.append(len(starts))
                seen.clear()
            if suffix in seen:
                raise DataError(f"{path}: holds {member.name} twice; {_AGAIN}, with each file once")
            seen.add(suffix)
            endings.add(ending_of(suffix))
            starts.append(member.offset_data)
            sizes.append(member.size)
            suffixes += suffix.encode()
            suffix_ends.append(len(suffixes))
            sha256.update(f"{member.name}\0{member.size}\n".encode())
    ids.add(keys)
    numbers = {"firsts": firsts, "starts": starts, "sizes": sizes, "suffix_ends": suffix_ends}
    arrays = {name: compact(np.array(values, np.uint64)) for name, values in numbers.items()}
    arrays["suffixes"] = np.frombuffer(bytes(suffixes), np.uint8)
    return {**arrays, **ids.arrays()}, {"sha256": sha256.hexdigest(), "endings": json.dumps(sorted(endings))}


def _members(path: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The files in a tar.

    Raises:
        DataError: it is compressed, damaged, cut off, or holds what is no file.
    """
    start = file.read(8)
    file.seek(0)
    if tool := next((tool for magic, tool in _PACKED.items() if start.startswith(magic)), None):
        raise DataError(f"{path}: is compressed; members are read at their offsets: unpack it with {tool}")
    last = "its start"
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # which it would keep for a listing
                last = member.name
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    kind = "sparse file" if member.issparse() else "link or device"
                    raise DataError(f"{path}: {member.name} is a {kind}; pack plain files")
                yield member
            end = tar.offset
    except tarfile.TarError as error:
        raise DataError(f"{path}: is damaged or cut off after {last}: {error}; {_AGAIN}") from None
    file.seek(end)
    if len(mark := file.read(_BLOCK)) < _BLOCK or any(mark):
        raise DataError(f"{path}: is damaged or cut off after {last}, at byte {end}: its end is not marked; {_AGAIN}")
    while rest := file.read(2**20):
        if any(rest):
            raise DataError(f"{path}: goes on after its end; tars that were joined have to be packed anew")


def _parts(path: Path, name: str) -> tuple[str, str]:
    """The sample's key and the member's suffix."""
    found = _NAME.fullmatch(name.removeprefix("./"))
    if found is None:
        raise DataError(f"{path}: {name} belongs to no sample; expected <key>.<suffix>: leave the file out of the tar")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"{path}: the name {name!r} is not UTF-8; rename the file, and {_AGAIN}") from None
    return found[1], found[2]
