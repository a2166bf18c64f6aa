"""Find the rows of JSON Lines: where each stands in its file, and what it is called. `jsonlist` does so with lists."""

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
import orjson

from vlmft.data.sources.ids import id_text
from vlmft.data.sources.index import Array
from vlmft.errors import DataError

CHUNK = 2**22
"""Bytes that are read at once."""

raw_decode = json.JSONDecoder().raw_decode
"""The standard library's parser: gives the value at a place of a text, and the place after it."""

_BLANK = re.compile(r"[ \t\n\r]*")

# orjson refuses some of what the standard library reads (NaN, half a character, numbers beyond a float): that is read
# again by the latter, whose word counts. Where both read a row they agree on all but whole numbers beyond 64 bits,
# which orjson makes a float, and on how deep brackets may go: `_NESTED` is far below either's limit.
_NESTED = 500


class Found(NamedTuple):
    """A row: the offset and length of its bytes, its line (from 1), and its id as text, if it has one."""

    start: int
    length: int
    line: int
    own_id: str | None


@dataclass(frozen=True)
class Batch:
    """Some rows: what `Found` says of one, of each."""

    starts: Array
    lengths: Array
    lines: Array
    own_ids: list[str | None]

    @classmethod
    def of(cls, rows: list[Found]) -> "Batch":
        """The batch of these rows."""
        numbers = np.array([row[:3] for row in rows], np.int64).reshape(-1, 3)
        return cls(numbers[:, 0], numbers[:, 1], numbers[:, 2], [row.own_id for row in rows])


class Digest(Protocol):
    """A hash that is told the file's content on the way."""

    def update(self, data: bytes, /) -> None:
        """Take the next bytes."""
        ...


def scan_lines(path: Path, file: BinaryIO, digest: Digest) -> Iterator[Batch]:
    """The rows of a JSON Lines file. Only a newline ends a line: U+2028 may stand inside a string.

    Raises:
        DataError: the file is no UTF-8, or a line no JSON.
    """
    start, line = after_mark(path, file, digest), 1
    while chunk := file.readlines(CHUNK):
        digest.update(b"".join(chunk))
        lengths = np.fromiter(map(len, chunk), np.int64, len(chunk))
        ends = start + np.cumsum(lengths)
        own_ids, unclear = _ids_of(chunk)
        batch = Batch(ends - lengths, lengths, np.arange(line, line + len(chunk)), own_ids)
        yield _read_again(path, chunk, batch, unclear) if unclear else batch
        start, line = int(ends[-1]), line + len(chunk)


def _ids_of(lines: list[bytes]) -> tuple[list[str | None], list[int]]:
    """The id of each line's value, and the numbers of the lines that the standard library has to read."""
    loads = orjson.loads
    own_ids: list[str | None] = []
    unclear: list[int] = []
    for number, raw in enumerate(lines):
        own = None
        try:
            value = loads(raw)
        except ValueError:
            unclear.append(number)
        else:
            if type(value) is dict:
                own = value.get("id")
                if type(own) is not str:
                    if type(own) is float:
                        unclear.append(number)
                    own = id_text(own)
            if len(raw) > 2 * _NESTED and raw.count(b"[") + raw.count(b"{") > _NESTED:
                unclear.append(number)
        own_ids.append(own or None)
    return own_ids, unclear


def _read_again(path: Path, lines: list[bytes], batch: Batch, unclear: list[int]) -> Batch:
    """Read the lines with these numbers by the standard library; leave out those that are blank."""
    columns = zip(batch.starts.tolist(), batch.lengths.tolist(), batch.lines.tolist(), batch.own_ids, strict=True)
    rows = [Found(*column) for column in columns]
    again = {number: _slowly(path, lines[number], rows[number]) for number in unclear}
    return Batch.of([row for number, found in enumerate(rows) if (row := again.get(number, found))])


def parse(path: Path, text: str, start: int = 0, line: int = 1) -> tuple[Any, int]:
    """Parse the value at `start`; return it with the position after it. `line` is that of `text[0]`.

    Raises:
        DataError: there is no JSON, or none that Python can hold.
    """
    try:
        return raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise invalid(path, error.msg, error.lineno + line - 1, error.colno) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; a thousand open brackets
        raise unusable(path, error, text.count("\n", 0, start) + line) from None


def _slowly(path: Path, raw: bytes, line: Found) -> Found | None:
    """Read a line with the standard library; None where it is blank."""
    text = _decoded(path, raw.removesuffix(b"\n"), line.start, line.line)
    begin = blank_end(text, 0)
    if begin == len(text):
        return None
    if line.line == 1 and text.strip() == "[":
        raise DataError(f"{path}: holds a JSON list, not one object a line; give it a name that ends in .json")
    value, end = parse(path, text, begin, line.line)
    if text[end:].strip():
        raise DataError(f"{path}:{line.line}: there is more after the line's object; write one object a line")
    start, length = line.start + len(text[:begin].encode()), len(text[begin:end].encode())
    return Found(start, length, line.line, own_id_of(value))


def own_id_of(value: Any) -> str | None:
    """The id of a row, if it has one."""
    return id_text(value.get("id")) if isinstance(value, dict) else None


def after_mark(path: Path, file: BinaryIO, digest: Digest) -> int:
    """Read past a byte order mark, and return its length."""
    mark = file.read(len(codecs.BOM_UTF8))
    if mark.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}: is UTF-16; save it as UTF-8")
    if mark != codecs.BOM_UTF8:
        file.seek(0)
        return 0
    digest.update(mark)
    return len(mark)


def _decoded(path: Path, data: bytes, start: int, line: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise not_utf8(path, data, error.start, start, line) from None


def not_utf8(path: Path, data: bytes, at: int, start: int, line: int) -> DataError:
    """What to say of the byte at `at` of `data`, which begins at the offset `start`, in `line`."""
    line += data.count(b"\n", 0, at)
    return DataError(f"{path}:{line}: byte {start + at} (0x{data[at]:02x}) is not UTF-8; save the file as UTF-8")


def blank_end(text: str, at: int) -> int:
    """The place of the next character of a text, from `at` on, that is not blank."""
    blank = _BLANK.match(text, at)
    return blank.end() if blank else at


def invalid(path: Path, what: str, line: int, column: int) -> DataError:
    """What to say of a file that is no JSON."""
    return DataError(f"{path}: is not valid JSON: {what} at line {line}, column {column}")


def unusable(path: Path, error: Exception, line: int) -> DataError:
    """What to say of a value that Python cannot hold."""
    return DataError(f"{path}: is not usable JSON: {error}, in the value that starts at line {line}")
