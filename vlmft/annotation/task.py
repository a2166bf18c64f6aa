"""What an annotator is given to do."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmft.annotation.media import MediaFile
from vlmft.annotation.rows import write_whole
from vlmft.annotation.templates import Template
from vlmft.data.sources.caption_schema import CaptionSchema
from vlmft.data.sources.captions import SCHEMA
from vlmft.data.sources.parsed import NAMES
from vlmft.errors import ConfigError


@dataclass(frozen=True)
class Task:
    """Media, and the file in which each is to get a row."""

    out: Path
    base: Path
    """The folder that the rows' paths start from."""
    files: list[MediaFile]
    schema: CaptionSchema | None
    schema_path: Path | None
    templates: list[Template]
    append: bool

    def missing(self, rows: Iterable[Any]) -> list[MediaFile]:
        """The files that no row names."""
        named = {path for row in rows for path in self.named(row)}
        return [file for file in self.files if file.path not in named]

    def named(self, row: Any) -> list[Path]:
        """The files that a row names, however it writes their paths."""
        if not isinstance(row, Mapping):
            return []
        references = (text for key in NAMES for text in _texts(row.get(key)))
        return [Path(os.path.normpath(self.base / reference)) for reference in references]


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [text for item in value for text in _texts(item)] if isinstance(value, list) else []


def keep_schema(task: Task) -> None:
    """Copy the schema beside `out`, where training looks for it.

    Raises:
        ConfigError: another schema is there already.
        StorageError: it cannot be written.
    """
    if task.schema_path is None:
        return
    path, written = task.out.with_name(SCHEMA), task.schema_path.read_bytes()
    if not path.exists():
        write_whole(path, written)
    elif path.read_bytes() != written:
        raise ConfigError(
            f"schema: differs from {path}, which is that of the captions in {task.out}; give that one, or put out into "
            "another folder"
        )
