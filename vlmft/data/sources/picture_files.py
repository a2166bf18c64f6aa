"""The pictures below the folders of their classes, as a table of rows."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from vlmft.config.hints import did_you_mean
from vlmft.data.sources.references import PICTURE_SUFFIXES
from vlmft.errors import DataError

_LISTED = 10  # files named in one error
_LINKED = " is a symlink to a folder; move the folder itself here"


@dataclass(frozen=True)
class PictureFiles:
    """One row a file: `{"image": its path below the folder, "label": the first folder of it}`."""

    path: Path
    files: tuple[str, ...] = field(repr=False)
    """Paths below the folder, with / between."""
    _bytes: int = 0

    @property
    def shards(self) -> None:
        """Rows may be read in any order."""
        return None

    def __len__(self) -> int:
        return len(self.files)

    def value(self, row: int) -> Any:
        """See `Table.value`."""
        return {"image": self.files[row], "label": PurePosixPath(self.files[row]).parts[0]}

    def place(self, row: int) -> str:
        """The file, for messages."""
        return f"{self.path / self.files[row]}, row {row}"

    def own_id(self, row: int) -> str:
        """The file's path below the folder."""
        return self.files[row]

    def fingerprint(self) -> dict[str, str | int]:
        """`sha256` of the names and of the bytes that all files have together; number of `rows`."""
        named = "\n".join((*self.files, str(self._bytes)))
        return {"sha256": hashlib.sha256(named.encode()).hexdigest(), "rows": len(self)}


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in `folder`, sorted; hidden ones are left out.

    Raises:
        DataError: the folder cannot be read.
    """
    return [entry.name for entry in _entries(folder) if entry.is_dir()]


def list_pictures(folder: Path, classes: tuple[str, ...], ignore: tuple[str, ...] = ()) -> PictureFiles:
    """List the pictures below each class's folder, at any depth, in the order of their paths.

    Args:
        folder: free of symlinks.
        classes: names of folders; there may be no others, and at least one of them.
        ignore: patterns of file names that are left out, as are hidden files.

    Raises:
        DataError: a folder is unknown, empty or cannot be read; a file is no picture. All are listed.
    """
    problems: list[str] = []
    files: list[tuple[str, int]] = []
    for entry in _entries(folder):
        if not entry.is_dir():
            if not _left_out(entry.name, ignore):
                problems.append(f"{entry.path} lies beside the classes' folders; move it, or name it in ignore")
        elif entry.name not in classes:
            hint = did_you_mean(entry.name, classes) or f"; add it to answers (which has {', '.join(classes)})"
            problems.append(f"{entry.path} is the folder of no known class{hint}")
        elif entry.is_symlink():
            problems.append(f"{entry.path}{_LINKED}")
        else:
            found = list(_below(Path(entry.path), ignore, problems))
            if not found:
                problems.append(f"{entry.path} holds no picture; add some, or remove the folder")
            files += found
    if not files and not problems:
        problems.append(f"{folder} holds no folder of a class; expected {', '.join(classes)}")
    if len(problems) > _LISTED:
        problems[_LISTED:] = [f"{folder}: {len(problems) - _LISTED} more files or folders cannot be used"]
    DataError.raise_if(problems)
    names = [(Path(path).relative_to(folder).as_posix(), size) for path, size in files]
    return PictureFiles(folder, tuple(name for name, _ in names), sum(size for _, size in names))


def _below(folder: Path, ignore: tuple[str, ...], problems: list[str]) -> Iterator[tuple[str, int]]:
    """Path and size of each picture below a folder; `problems` takes what is none."""
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _below(Path(entry.path), ignore, problems)
        elif _left_out(entry.name, ignore):
            continue
        elif entry.is_dir():
            problems.append(f"{entry.path}{_LINKED}")
        elif not _is_utf8(entry.name):
            problems.append(f"{os.fsencode(entry.path)!r} has a name that is not UTF-8; rename it")
        elif PurePosixPath(entry.name).suffix.lower() not in PICTURE_SUFFIXES:
            problems.append(
                f"{entry.path} is no picture ({', '.join(PICTURE_SUFFIXES)}); move it, or name it in ignore"
            )
        else:
            yield entry.path, _size(entry)


def _size(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a symlink to nothing: reading the sample says so
        return 0


def _entries(folder: Path) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(folder) as found:
            return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}; give a folder that you may read") from error


def _is_utf8(name: str) -> bool:
    return not any("\udc80" <= character <= "\udcff" for character in name)  # how Python spells other bytes


def _left_out(name: str, ignore: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in ignore)
