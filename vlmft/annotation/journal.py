"""A JSON Lines file that a command adds to, however often it is started: one writer at a time, whole lines only."""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vlmft.annotation.rows import read_rows, write_whole
from vlmft.errors import ConfigError, DataError, StorageError

Row = dict[str, Any]


class Journal:
    """The open file. `rows` are those that stood in it, `places` where; `cut` is what a killed writer left half."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.rows: list[Row] = []
        self.places: list[str] = []
        self._descriptor = descriptor
        self.cut = self._end_last_line()
        for place, row in read_rows(path):
            if not isinstance(row, dict):
                raise DataError(f"{place}: holds a {type(row).__name__}; expected an object a line")
            self.places.append(place)
            self.rows.append(row)

    def append(self, rows: Sequence[Row]) -> None:
        """Add `rows`, all of them or none; they are on the device when this returns.

        Raises:
            StorageError: the file cannot be written.
        """
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        data = text.encode(errors="backslashreplace")  # half a character becomes \ud800, as JSON writes it
        before = os.fstat(self._descriptor).st_size
        try:
            # One call: a process that is killed has made it or not.
            if os.write(self._descriptor, data) < len(data):
                os.ftruncate(self._descriptor, before)
                raise StorageError(f"{self.path}: cannot be written: the device is full; the same command goes on")
            os.fsync(self._descriptor)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be written: {error.strerror}") from error

    def sort(self, key: Callable[[Row], str]) -> None:
        """Put the lines in the order of `key`, in place of the file at once. Nothing is appended after this."""
        lines = [line for line in self.path.read_bytes().split(b"\n") if line.strip()]
        ordered = sorted(lines, key=lambda line: key(json.loads(line)))
        if ordered != lines:
            write_whole(self.path, b"".join(line + b"\n" for line in ordered))

    def _end_last_line(self) -> int:
        """Cut off a last line that is no JSON, or end one that a person did not; return the bytes that were cut."""
        data = self.path.read_bytes()
        last = data[data.rfind(b"\n") + 1 :]
        if not last.strip():
            return 0
        try:
            json.loads(last)
        except ValueError:
            os.ftruncate(self._descriptor, len(data) - len(last))
            return len(last)
        os.write(self._descriptor, b"\n")
        return 0


@contextlib.contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """Open `path`, or begin it, for this process alone while the body runs. Left empty, it is removed again.

    Raises:
        ConfigError: another process has it open.
        DataError: a line is no JSON object.
        StorageError: it cannot be opened.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise StorageError(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        _lock(path, descriptor)
        try:
            yield Journal(path, descriptor)
        finally:
            if path.stat().st_size == 0:
                path.unlink()
    finally:
        os.close(descriptor)


def _lock(path: Path, descriptor: int) -> None:
    in_use = f"{path}: another command is writing it; wait for it, or stop it"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ConfigError(in_use) from None
    # Opened a moment before another command sorted it: that file has lost its name.
    if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
        raise ConfigError(in_use)
