"""The rows of a file that is to be added to, each with its place, and how a file is written whole.

Training reads files of any size by index (`vlmft.data.sources.jsonrows`); what people annotate fits into memory.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmft.errors import DataError, StorageError

PlacedRow = tuple[str, Any]
"""`<file>:<line>` (a list: `<file>, row <row>`, from 0), and the row."""


def is_list(path: Path) -> bool:
    """Whether a file holds one JSON list, by its name's ending, and no JSON Lines."""
    return path.suffix.lower() == ".json"


def read_rows(path: Path) -> list[PlacedRow]:
    """Every row of a JSON list, or of JSON Lines.

    Raises:
        DataError: the file cannot be read, or is neither.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        return list(_items(path, text) if is_list(path) else _lines(path, text))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None


def write_whole(path: Path, data: bytes) -> None:
    """Write beside `path`, then rename: no crash leaves half a file.

    Raises:
        StorageError: it cannot be written; what stood there still does.
    """
    beside = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}; it is as it was") from error


def _items(path: Path, text: str) -> Iterator[PlacedRow]:
    rows = _parsed(f"{path}", text)
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds a JSON {type(rows).__name__}; expected a list of rows, or the ending .jsonl")
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows))


def _lines(path: Path, text: str) -> Iterator[PlacedRow]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", _parsed(f"{path}:{number}", line)


def _parsed(place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: is no valid JSON: {error}; mend it") from None
