"""One run at a time on one folder, and one merge into it.

The lock is the kernel's (flock), which lets go of it however its holder ends, so none is ever stale; the file's content
only says who holds it. The driver holds one and rank 0 another: a rank that outlives a killed driver for the seconds of
its last checkpoint still keeps others out.
"""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from vlmft.errors import ConfigError, StorageError

DRIVER, RANK, MERGE = "driver", "rank", "merge"


@contextlib.contextmanager
def held(folder: Path, role: str, named: str | None = None) -> Iterator[None]:
    """Hold the folder's lock of `role` while the body runs; the folder is made where it is missing.

    Args:
        named: what an error calls the folder; None: `run.dir=<folder>`.

    Raises:
        ConfigError: another process holds it; the message says which.
        StorageError: the lock's file cannot be opened.
    """
    path, named = lock_file(folder, role), named or f"run.dir={folder}"
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{named} is a file, not a folder; choose another name")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: cannot be opened: {error.strerror}") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{named} is in use by {_holder(path)}; wait for it, or stop it") from None
        stream.seek(0)
        stream.truncate()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "since": now}, stream)
        stream.flush()
        yield


def lock_file(folder: Path, role: str) -> Path:
    """The file that is locked."""
    return folder / f".{role}.lock"


def is_held(folder: Path, role: str) -> bool:
    """Whether a process holds the folder's lock of `role` just now."""
    try:
        with lock_file(folder, role).open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _holder(path: Path) -> str:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return f"process {found['pid']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"
