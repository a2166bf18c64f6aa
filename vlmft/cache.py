"""Folders that are made once and kept: generated data, tiny checkpoints, indexes of data files."""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from vlmft.errors import StorageError


def cache_dir() -> Path:
    """Return vlmft's cache folder: `$XDG_CACHE_HOME/vlmft`, or `~/.cache/vlmft`.

    A relative `XDG_CACHE_HOME` is ignored, as the XDG base directory specification asks: it would mean
    another folder for each place a command is started from.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (home if home.is_absolute() else Path.home() / ".cache") / "vlmft"


def make_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`; where it does not exist yet, `build` fills a temporary sibling that then takes its name.

    Processes may do this at the same time: the first to rename wins, and the others use its result. What a
    crash leaves behind is never used, as it never had the name.

    Raises:
        StorageError: the folder cannot be written.
    """
    if folder.is_dir():
        return folder
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        build(temporary)
        temporary.rename(folder)
    except OSError as error:
        if not folder.is_dir():
            raise StorageError(
                f"{folder} cannot be made: {error}; set XDG_CACHE_HOME to a folder with space that you may write to"
            ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
