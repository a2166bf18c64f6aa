"""Bytes of data files at their offsets. A file that changes while a run reads it is an error, and never garbage.

Read, not memory-mapped: a file that someone cuts short would end a process that has it mapped by a signal.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from vlmft.errors import DataError

MAX_OPEN = 64
"""Data files that a process holds open, all its tables together."""

_TICK_S = 0.02  # a file's times move in steps of up to 10 ms: a second change within one would not show


@dataclass(frozen=True, slots=True)
class FileState:
    """What tells one content of a file from another, without reading it."""

    size: int
    mtime_ns: int
    ctime_ns: int
    """Tells also what keeps its size and time, as `cp -p` does; changes with mode and name, too."""

    @classmethod
    def of(cls, path: Path) -> "FileState":
        """The state of the file at `path`. Raises `DataError` where it cannot be read."""
        try:
            return cls._of(os.stat(path))
        except OSError as error:
            raise _unreadable(path, error) from error

    @classmethod
    def of_descriptor(cls, descriptor: int) -> "FileState":
        """The state of an open file."""
        return cls._of(os.fstat(descriptor))

    @classmethod
    def _of(cls, found: os.stat_result) -> "FileState":
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def settle(self) -> None:
        """Wait until any further change of the file would give it another state."""
        age_s = time.time() - self.ctime_ns / 1e9
        if -1 < age_s < _TICK_S:
            time.sleep(_TICK_S - age_s)

    def expect(self, found: "FileState", path: Path) -> None:
        """Raise `DataError` where `found` is a state with another content. Its mode and name may have changed."""
        if (found.size, found.mtime_ns) != (self.size, self.mtime_ns):
            what = f"{self.size} bytes then, {found.size} now" if found.size != self.size else "its time is another"
            raise DataError(
                f"{path}: has changed since it was opened ({what}); leave data files alone while a run reads them, "
                "and start again"
            )


def read_at(path: Path, state: FileState, start: int, length: int) -> bytes:
    """Read `length` bytes from offset `start` of a file that is still in `state`.

    Raises:
        DataError: the file has changed, is gone, or cannot be read.
    """
    try:
        opened = _opened(path, state)
        data = opened.read(start, length)
    except OSError as error:
        raise _unreadable(path, error) from error
    state.expect(FileState.of_descriptor(opened.number), path)
    if len(data) != length:
        raise DataError(f"{path}: ends at byte {start + len(data)}; expected {length} bytes from {start}")
    return data


@contextmanager
def open_to_read(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read it through. Raises `DataError` where it cannot be read."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise _unreadable(path, error) from error


class _Descriptor:
    """An open file, which closes with its last reader: another thread may read while it falls out of the cache."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)

    def read(self, start: int, length: int) -> bytes:
        data = os.pread(self.number, length, start)
        while len(data) < length and (more := os.pread(self.number, length - len(data), start + len(data))):
            data += more
        return data


@lru_cache(MAX_OPEN)
def _opened(path: Path, state: FileState) -> _Descriptor:
    """Shared by all threads, and by forked processes: `pread` moves no position."""
    opened = _Descriptor(path)
    state.expect(FileState.of_descriptor(opened.number), path)
    return opened


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read: {error.strerror}; give data_path a file that you may read")
