"""Where a sample's media may lie: inside its media folder, and nowhere else."""

import os
import re
import stat
from pathlib import Path

from vlmft.errors import DataError

_URL = re.compile(r"(?:[a-z][a-z0-9+.-]*://|data:|file:)", re.IGNORECASE)


def resolve_media(media_dir: Path, reference: str) -> Path:
    """Return the absolute path, free of symlinks, of the file that `reference` names.

    What counts is where the file really lies: a path with `..`, an absolute one or a symlink is refused
    where it leads out of `media_dir`. `media_dir` must be absolute and free of symlinks itself.

    Raises:
        DataError: a URL, a path out of the folder, or no regular file.
    """
    if _URL.match(reference):
        shown = reference if len(reference) <= 80 else reference[:77] + "..."
        raise DataError(f"{shown} is a URL; media are read from files: save it below {media_dir}")
    if "\0" in reference:
        raise DataError(f"{reference!r} holds a NUL character; write the path of a file below {media_dir}")
    joined = media_dir / reference
    try:
        found = Path(os.path.realpath(joined))
        if not found.is_relative_to(media_dir):
            raise DataError(f"{reference} {_way_out(reference)} media_dir {media_dir}; {_way_in(reference)}")
        mode = found.stat().st_mode
    except FileNotFoundError:
        hint = "; write / between folders" if "\\" in reference else ""
        raise DataError(
            f"{reference} does not exist in media_dir {media_dir}{hint}; mend the path or media_dir"
        ) from None
    except OSError as error:
        raise DataError(f"{joined} cannot be read: {error.strerror}; mend the path or media_dir") from error
    # Opening a pipe would wait forever for someone to write into it.
    if not stat.S_ISREG(mode):
        raise DataError(f"{joined} is a {'folder' if stat.S_ISDIR(mode) else 'special file'}; expected a file")
    return found


def _way_out(reference: str) -> str:
    if os.path.isabs(reference):
        return "is an absolute path out of"
    return "leads by .. out of" if ".." in Path(reference).parts else "is or passes a symlink that leads out of"


def _way_in(reference: str) -> str:
    fix = "copy the file into that folder, or set media_dir to a folder that holds all media"
    return f"write it relative to media_dir, {fix}" if os.path.isabs(reference) else fix
