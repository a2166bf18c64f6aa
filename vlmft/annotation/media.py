"""The pictures and videos of a folder, in one order everywhere, named as training data names them."""

import os
from dataclasses import dataclass
from pathlib import Path

from vlmft.data.media.paths import resolve_media
from vlmft.data.sources.parsed import NAMES, Kind, counted
from vlmft.data.sources.references import PICTURE_SUFFIXES
from vlmft.errors import DataError

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv")

_SUFFIXES: dict[Kind, tuple[str, ...]] = {"image": PICTURE_SUFFIXES, "video": VIDEO_SUFFIXES}
_KINDS = {suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes}
_LISTED = 5  # problems named in one message


@dataclass(frozen=True, slots=True)
class MediaFile:
    """A picture or video. `reference` is its path from the base folder, with `/` between folders."""

    path: Path
    reference: str
    kind: Kind


@dataclass(frozen=True)
class Found:
    """What a folder holds."""

    files: list[MediaFile]
    """In the order of their references."""
    others: int
    """Files of other kinds, and linked folders, which are not searched."""

    @property
    def summary(self) -> str:
        """What was found, in words."""
        number = {kind: sum(file.kind == kind for file in self.files) for kind in NAMES}
        said = ", ".join(counted(count, NAMES[kind]) for kind, count in number.items() if count)
        return f"{said}; left alone: {self.others} (other kinds, linked folders)" if self.others else said


def find_media(folder: Path, base: Path, leave_out: Path | None = None) -> Found:
    """Search `folder` and its subfolders; names that begin with a dot are passed over, as a shell does.

    Args:
        folder: absolute and free of symlinks, as are the others.
        base: what the references start from; `folder` lies in it.
        leave_out: a folder below that is not searched.

    Raises:
        DataError: lists files that are links out of `base`, or whose names are no UTF-8.
    """
    files: list[MediaFile] = []
    problems: list[str] = []
    others = 0
    for place, subfolders, names in os.walk(folder, onerror=_unreadable):
        seen = [Path(place, name) for name in sorted(subfolders) if not name.startswith(".")]
        entered = [path for path in seen if not path.is_symlink() and path != leave_out]
        others += sum(path.is_symlink() for path in seen)
        subfolders[:] = [path.name for path in entered]
        for path in (Path(place, name) for name in names if not name.startswith(".")):
            kind = _KINDS.get(path.suffix.lower())
            if kind is None:
                others += 1
                continue
            try:
                files.append(MediaFile(path, _reference(path, base), kind))
            except DataError as error:
                problems += error.problems
    problems.sort()
    if len(problems) > _LISTED:
        problems[_LISTED:] = [f"{folder}: {len(problems) - _LISTED} more files like these"]
    DataError.raise_if(problems)
    return Found(sorted(files, key=lambda file: file.reference), others)


def _reference(path: Path, base: Path) -> str:
    reference = path.relative_to(base).as_posix()
    try:
        reference.encode()
    except UnicodeEncodeError:
        raise DataError(f"{os.fsencode(path)!r}: its name is no UTF-8, so no JSON can hold it; rename it") from None
    resolve_media(base, reference)
    return reference


def _unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be searched: {error.strerror}; mend its permissions, or move it away")
