"""What has to be known of a data file before its rows are read: where they stand, and what they are called.

An index holds flat arrays, some 20 bytes a row and the ids' own characters. That of a large file is made once and kept
in the cache folder; every process maps the same copy into its memory.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from vlmft.cache import cache_dir, make_once
from vlmft.data.sources.reading import FileState

logger = logging.getLogger(__name__)

Array: TypeAlias = np.ndarray[Any, Any]

SMALL = 16 * 2**20
"""Bytes of a file whose index is made anew by each process: that takes a tenth of a second."""

_LAYOUT = 1  # raised where the arrays of an index change their meaning
_FILE = "arrays.safetensors"
_MAPPED = 64  # indexes that a process keeps mapped
_UNUSED_S = 30 * 24 * 3600.0


@dataclass(frozen=True)
class Index:
    """Arrays about one state of a file, and a few words (`notes`), such as its hash."""

    state: FileState
    arrays: Mapping[str, Array]
    notes: Mapping[str, str]


Build = Callable[[Path], tuple[Mapping[str, Array], Mapping[str, str]]]
"""Reads a whole file and gives the arrays and notes of its index. Raises `DataError` where it cannot be used."""


@dataclass(frozen=True, slots=True)
class IndexOf:
    """The index of one file, found or made when it is asked for. It travels between processes as this alone.

    `purpose` names what `build` makes of the file; equal purposes give equal arrays.
    """

    path: Path
    purpose: str
    build: Build

    def folder(self, state: FileState) -> Path:
        """Where the index of the file's `state` is kept."""
        named = json.dumps([_LAYOUT, str(self.path), self.purpose]).encode()
        of_file = cache_dir() / "indexes" / hashlib.blake2b(named, digest_size=16).hexdigest()
        return of_file / f"{state.size}-{state.mtime_ns}-{state.ctime_ns}"

    def get(self) -> Index:
        """The index of the file as it is now, out of the cache folder; made, where it is not there.

        Raises:
            DataError: the file cannot be used, or changes while it is read.
            StorageError: the index cannot be kept.
        """
        state = FileState.of(self.path)
        folder = self.folder(state)
        try:
            return _mapped(folder, state)
        except (OSError, ValueError) as error:
            if folder.is_dir():
                logger.warning("the index in %s is damaged (%s) and is made anew", folder, error)
                shutil.rmtree(folder)
        state.settle()
        built = self.build_now(state)
        make_once(folder, lambda made: _write(made, built, self.path))
        _remove_unused(folder)
        return _mapped(folder, state)

    def exists(self) -> bool:
        """Whether the index of the file as it is now is in the cache folder."""
        return self.folder(FileState.of(self.path)).is_dir()

    def build_now(self, state: FileState | None = None) -> Index:
        """Make the index, and keep it in this process alone. As `get`."""
        state = state or FileState.of(self.path)
        arrays, notes = self.build(self.path)
        state.expect(FileState.of(self.path), self.path)
        return Index(state, arrays, notes)


class OpenIndex:
    """An index in use. It is found again by each process that it travels to, unless it is not kept.

    Args:
        keep: keep it in the cache folder. An index that takes no time to make need not lie there.
    """

    def __init__(self, of: IndexOf, keep: bool) -> None:
        self._of, self._keep = of, keep
        self._found: Index | None = of.get() if keep else of.build_now()
        self.state = self._found.state

    @property
    def now(self) -> Index:
        """The index. Raises `DataError` where the file has changed since it was opened."""
        if self._found is None:
            found = self._of.get()
            self.state.expect(found.state, self._of.path)
            self._found = found
        return self._found

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_found": None} if self._keep else self.__dict__


def compact(values: Array) -> Array:
    """Whole numbers in the smallest unsigned type that holds them all."""
    return values.astype(np.min_scalar_type(int(values.max()) if len(values) else 0))


def _write(folder: Path, index: Index, path: Path) -> None:
    from safetensors.numpy import save_file

    file = folder / _FILE
    notes = {"path": str(path).encode(errors="backslashreplace").decode(), **index.notes}
    save_file({name: np.ascontiguousarray(array) for name, array in index.arrays.items()}, file, notes)
    with file.open("rb+") as written:
        os.fsync(written.fileno())


@lru_cache(_MAPPED)
def _mapped(folder: Path, state: FileState) -> Index:
    """Map an index into memory.

    Raises:
        OSError: there is none.
        ValueError: it is damaged.
    """
    content = np.memmap(folder / _FILE, np.uint8, "r")
    try:
        start = 8 + int.from_bytes(content[:8].tobytes(), "little")
        header: dict[str, Any] = json.loads(content[8:start].tobytes())
        notes: dict[str, str] = header.pop("__metadata__")
        return Index(state, {name: _array(content, start, **entry) for name, entry in header.items()}, notes)
    except (LookupError, TypeError) as error:
        raise ValueError(f"its header lacks {error}") from error


def _array(content: Array, start: int, dtype: str, shape: list[int], data_offsets: list[int]) -> Array:
    """One array of a file in the safetensors format, which is documented to have its bytes at these offsets."""
    begin, end = data_offsets
    if start + end > len(content):
        raise ValueError(f"it ends at byte {len(content)}; expected {start + end}")
    kind = np.dtype(f"{'u' if dtype[0] == 'U' else 'i'}{int(dtype[1:]) // 8}").newbyteorder("<")
    return content[start + begin : start + end].view(kind).reshape(shape).view(np.ndarray)


def _remove_unused(kept: Path) -> None:
    """Remove indexes of the same file's earlier states that nobody has read for `_UNUSED_S`.

    Not at once: another machine may have a file of its own under the same path, and share this cache folder.
    """
    for other in kept.parent.iterdir():
        with suppress(OSError):  # another process makes or removes it, or it is another user's
            used = max([other.stat().st_mtime, *(file.stat().st_atime for file in other.iterdir())])
            if other != kept and used < time.time() - _UNUSED_S:
                shutil.rmtree(other)
