"""JSON lists and JSON Lines, row by row: every row keeps its line, and is parsed when it is asked for.

A row is kept as the bytes it has in the file, all rows in one buffer. A million parsed rows would be some
gigabytes of small Python objects, which every loader process would come to copy.
"""

import codecs
import hashlib
import json
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmft.errors import DataError

_LINES_SUFFIXES = (".jsonl", ".ndjson")
_BLANK = re.compile(r"[ \t\n\r]*")


@dataclass
class JsonRows:
    """The rows of one file. `ids` holds each row's own id as text, or None where it gives none."""

    path: Path
    sha256: str
    ids: list[str | None] = field(default_factory=list, repr=False)
    _buffer: bytes = field(default=b"", repr=False)
    _ends: "array[int]" = field(default_factory=lambda: array("Q"), repr=False)
    _lines: "array[int]" = field(default_factory=lambda: array("Q"), repr=False)

    def __len__(self) -> int:
        return len(self._ends)

    def value(self, row: int) -> Any:
        """Parse one row."""
        start = self._ends[row - 1] if row else 0
        return json.loads(self._buffer[start : self._ends[row]])

    @property
    def shards(self) -> None:
        """Rows may be read in any order."""
        return None

    def own_id(self, row: int) -> str | None:
        """The row's own id as text, or None where it gives none."""
        return self.ids[row]

    def fingerprint(self) -> dict[str, str | int]:
        """`sha256` of the file and number of `rows`."""
        return {"sha256": self.sha256, "rows": len(self)}

    def place(self, row: int) -> str:
        """Where the row starts, for messages: `<file>:<line>, row <row>`; lines count from 1, rows from 0."""
        return f"{self.path}:{self._lines[row]}, row {row}"


def read_json_rows(path: Path) -> JsonRows:
    """Read a JSON list, or JSON Lines where the name ends in .jsonl or .ndjson.

    Raises:
        DataError: the file cannot be read, is no UTF-8, no valid JSON, no list, or empty.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; give data_path a file that you may read") from error
    rows = JsonRows(path, hashlib.sha256(data).hexdigest())
    buffer = bytearray()
    text = _decode(path, data)
    found = _lines_of(path, text) if path.suffix.lower() in _LINES_SUFFIXES else _list_of(path, text)
    for raw, value, line in found:
        buffer += raw.encode()
        rows._ends.append(len(buffer))
        rows._lines.append(line)
        rows.ids.append(_id_of(value))
    if not len(rows):
        raise DataError(f"{path}: holds no sample; expected at least one")
    rows._buffer = bytes(buffer)
    return rows


def _id_of(value: Any) -> str | None:
    found = value.get("id") if isinstance(value, dict) else None
    if isinstance(found, bool) or not isinstance(found, str | int | float):
        return None
    try:
        return str(found).encode().decode() or None
    except UnicodeEncodeError:  # half a character (\ud800): the row is refused, and named by its number
        return None


def _decode(path: Path, data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}: is UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: byte {error.start} (0x{data[error.start]:02x}) is not UTF-8; save the file as UTF-8"
        ) from None


def _parse(path: Path, text: str, start: int, first_line: int) -> tuple[Any, int]:
    """Parse the value at `start`; return it with the position after it. `first_line` is the line of `text[0]`."""
    try:
        return json.JSONDecoder().raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: is not valid JSON: {error.msg} at line {error.lineno + first_line - 1}, column {error.colno}"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; a thousand open brackets
        line = text.count("\n", 0, start) + first_line
        raise DataError(f"{path}: is not usable JSON: {error}, in the value that starts at line {line}") from None


def _list_of(path: Path, text: str) -> Iterator[tuple[str, Any, int]]:
    """Yield each element of a JSON list with its text and line."""
    skip = _skipper(text)
    at, line, counted = skip(0), 1, 0
    if at == len(text):
        raise DataError(f"{path}: is empty; expected a JSON list of samples")
    if text[at] != "[":
        value, end = _parse(path, text, at, 1)
        if isinstance(value, dict) and skip(end) < len(text) and text[skip(end)] == "{":
            raise DataError(f"{path}: looks like JSON Lines; give it a name that ends in .jsonl")
        raise DataError(f"{path}: holds a JSON {_kind(value)}; expected a list of samples: [{{...}}, {{...}}]")
    at = skip(at + 1)
    while text[at : at + 1] != "]":
        value, end = _parse(path, text, at, 1)
        line += text.count("\n", counted, at)
        counted = at
        yield text[at:end], value, line
        at = skip(end)
        if text[at : at + 1] == ",":
            at = skip(at + 1)
            if text[at : at + 1] == "]":
                raise _broken(path, text, at, "a comma stands before the closing ]; remove it")
        elif text[at : at + 1] != "]":
            raise _broken(path, text, at, "expected a comma or the closing ]")
    if skip(at + 1) != len(text):
        raise _broken(path, text, skip(at + 1), "there is more after the closing ]")


def _lines_of(path: Path, text: str) -> Iterator[tuple[str, Any, int]]:
    """Yield each line's value. Only a newline ends a line: U+2028 may stand inside a JSON string."""
    skip_blank = _BLANK.match
    for line, raw in enumerate(text.split("\n"), start=1):
        blank = skip_blank(raw)
        start = blank.end() if blank else 0
        if start == len(raw):
            continue
        if line == 1 and raw.strip() == "[":
            raise DataError(f"{path}: holds a JSON list, not one object a line; give it a name that ends in .json")
        value, end = _parse(path, raw, start, line)
        if raw[end:].strip():
            raise DataError(f"{path}:{line}: there is more after the line's object; write one object a line")
        yield raw[start:end], value, line


def _skipper(text: str) -> Any:
    match = _BLANK.match

    def skip(at: int) -> int:
        found = match(text, at)
        return found.end() if found else at

    return skip


def _broken(path: Path, text: str, at: int, what: str) -> DataError:
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    return DataError(f"{path}: is not valid JSON: {what} at line {line}, column {column}")


def _kind(value: Any) -> str:
    names = {dict: "object", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), type(value).__name__)
