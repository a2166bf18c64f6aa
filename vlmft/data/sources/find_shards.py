"""Which files a set of shards consists of, and what each is called in the ids of its rows."""

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmft.data.sources.parsed import counted
from vlmft.errors import DataError

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tgz")
_LISTED = 5  # files named in one message
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a set. `label` is its name without the suffix, with the folders that a pattern leaves open."""

    path: Path
    label: str


@dataclass(frozen=True)
class ShardFiles:
    """The files of a set, in the order of their paths."""

    path: Path
    """The folder or pattern that they were found by, or the folder that a list of them has in common."""
    folder: Path
    suffix: str
    shards: tuple[Shard, ...]


def find_shards(paths: Path | Sequence[Path], suffixes: tuple[str, ...]) -> ShardFiles:
    """Find the files in a folder, by a pattern, or as they are listed. All paths are absolute.

    In a folder, and where a pattern finds them, too, files of other kinds are left out, and hidden ones.

    Raises:
        DataError: there is none, a listed file is missing, files are compressed, of two kinds, or have the same label.
    """
    expected = f"expected files that end in {', '.join(suffixes)}"
    if not isinstance(paths, Path):
        if not paths:
            raise DataError("the list of files is empty; name at least one")
        folder = path = Path(os.path.commonpath([listed.parent for listed in paths]))
        found, base = list(paths), None
        if missing := [str(listed) for listed in paths if not listed.is_file()]:
            raise DataError(f"{_listed(missing)} {'is' if len(missing) == 1 else 'are'} no file; mend the list")
    elif paths.is_dir():
        path = folder = base = paths
        found = [entry for entry in paths.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    elif _MAGIC.search(str(paths)):
        path, base = paths, _fixed_part(paths)
        folder = base
        found = [Path(name) for name in glob.glob(str(paths), recursive=True) if os.path.isfile(name)]
    else:
        path, folder, found, base = paths, paths.parent, [paths], paths.parent
        if not paths.is_file():
            braces = "; write * in place of {...}" if "{" in paths.name else ""
            raise DataError(f"{paths} does not exist; give a folder, a pattern with *, or a list of files{braces}")
    if packed := sorted(str(file) for file in found if _is_compressed(file, suffixes)):
        raise DataError(f"{_listed(packed)}: compressed; rows are read at their offsets: unpack, as gunzip does")
    shards = sorted(file for file in found if file.suffix.lower() in suffixes)
    if base is None and len(shards) < len(found):
        others = [str(file) for file in found if file.suffix.lower() not in suffixes]
        raise DataError(f"{_listed(others)} cannot be read as shards; {expected}")
    if not shards:
        raise DataError(f"{path} holds none of the files sought; {expected}")
    kinds = sorted({file.suffix.lower() for file in shards})
    if len(kinds) > 1:
        raise DataError(f"{path} holds files of the kinds {', '.join(kinds)}; choose by a pattern, such as *{kinds[0]}")
    labelled = [Shard(file, _label(file, base)) for file in shards]
    _refuse_twins(labelled)
    return ShardFiles(path, folder, kinds[0], tuple(labelled))


def _fixed_part(pattern: Path) -> Path:
    """The folder before the first part of a pattern that leaves something open."""
    parts = pattern.parts[:-1]
    fixed = next((number for number, part in enumerate(parts) if _MAGIC.search(part)), len(parts))
    return Path(*parts[:fixed])


def _label(file: Path, base: Path | None) -> str:
    return (file.relative_to(base) if base else Path(file.name)).with_suffix("").as_posix()


def _is_compressed(file: Path, suffixes: tuple[str, ...]) -> bool:
    last = [suffix.lower() for suffix in file.suffixes[-2:]]
    return bool(last) and last[-1] in _COMPRESSED and (last[0] in suffixes or last[-1] == ".tgz")


def _refuse_twins(shards: Sequence[Shard]) -> None:
    seen: dict[str, Shard] = {}
    for shard in shards:
        for mark in (shard.label, os.path.realpath(shard.path)):
            twin = seen.setdefault(mark, shard)
            if twin is not shard:
                raise DataError(
                    f"{twin.path} and {shard.path} would give their rows the same ids; rename one, or choose them "
                    "by a pattern over their common folder"
                )


def _listed(names: Sequence[str]) -> str:
    more = f" and {counted(len(names) - _LISTED, 'more file')}" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
