"""Where a sample's media may lie: inside its media folder, and nowhere else."""

import os
import re
import stat
from pathlib import Path

from vlmft.errors import DataError

_URL = re.compile(r"(?:[a-z][a-z0-9+.-]*://|data:|file:)", re.IGNORECASE)
_FETCHABLE = re.compile(r"https?://", re.IGNORECASE)
_DIGITS = re.compile(r"(\d+)")


def is_url(reference: str) -> bool:
    """Whether a reference is an address, and no path."""
    return _URL.match(reference) is not None


def is_fetchable(reference: str) -> bool:
    """Whether a reference is an address that `allow_urls: true` allows: http or https."""
    return _FETCHABLE.match(reference) is not None


def resolve_media(media_dir: Path, reference: str) -> Path:
    """Return the absolute path, free of symlinks, of the file that `reference` names.

    What counts is where the file really lies: a path with `..`, an absolute one or a symlink is refused
    where it leads out of `media_dir`. `media_dir` must be absolute and free of symlinks itself.

    Raises:
        DataError: a URL, a path out of the folder, or no regular file.
    """
    found, mode = _looked_up(media_dir, reference)
    # Opening a pipe would wait forever for someone to write into it.
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "special file"
        raise DataError(f"{media_dir / reference} is a {kind}; expected a file")
    return found


def resolve_frames(media_dir: Path, reference: str) -> tuple[Path, ...] | None:
    """The frames of a video that is a folder of picture files; None where it is a single file.

    The files come in the order of the numbers in their names (2.jpg before 10.jpg); hidden ones are left out.

    Raises:
        DataError: as `resolve_media`; the folder is empty.
    """
    folder, mode = _looked_up(media_dir, reference)
    if not stat.S_ISDIR(mode):
        return None
    names = sorted((name for name in os.listdir(folder) if not name.startswith(".")), key=_natural)
    if not names:
        raise DataError(f"{media_dir / reference} is an empty folder; expected a video file, or a folder of its frames")
    return tuple(resolve_media(media_dir, f"{reference.rstrip('/')}/{name}") for name in names)


def _natural(name: str) -> list[str | tuple[int, str]]:
    pieces = _DIGITS.split(name)
    return [piece if i % 2 == 0 else (int(piece), piece) for i, piece in enumerate(pieces)]


def _looked_up(media_dir: Path, reference: str) -> tuple[Path, int]:
    """Where `reference` really lies inside `media_dir`, and its mode."""
    if is_url(reference):
        shown = reference if len(reference) <= 80 else reference[:77] + "..."
        allowed = ", or set allow_urls: true" if is_fetchable(reference) else ""
        raise DataError(f"{shown} is a URL; media are read from files: save it below {media_dir}{allowed}")
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
    return found, mode


def _way_out(reference: str) -> str:
    if os.path.isabs(reference):
        return "is an absolute path out of"
    return "leads by .. out of" if ".." in Path(reference).parts else "is or passes a symlink that leads out of"


def _way_in(reference: str) -> str:
    fix = "copy the file into that folder, or set media_dir to a folder that holds all media"
    return f"write it relative to media_dir, {fix}" if os.path.isabs(reference) else fix
