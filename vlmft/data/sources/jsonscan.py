"""Find the rows of JSON Lines and JSON lists: where each stands in its file, and what it says."""

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

_CHUNK = 2**22  # bytes read at once
_raw_decode = json.JSONDecoder().raw_decode
_BLANK = re.compile(r"[ \t\n\r]*")
_COMMA = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")
_LONGEST_WORD = 16  # characters that a decoder takes in at once: -Infinity, \ud83d\ude00

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
    start, line = _after_mark(path, file, digest), 1
    while chunk := file.readlines(_CHUNK):
        digest.update(b"".join(chunk))
        lengths = np.fromiter(map(len, chunk), np.int64, len(chunk))
        ends = start + np.cumsum(lengths)
        own_ids, unclear = _ids_of(chunk)
        batch = Batch(ends - lengths, lengths, np.arange(line, line + len(chunk)), own_ids)
        yield _read_again(path, chunk, batch, unclear) if unclear else batch
        start, line = int(ends[-1]), line + len(chunk)


def scan_list(path: Path, file: BinaryIO, digest: Digest) -> Iterator[Batch]:
    """The elements of a JSON list, of which a few megabytes at a time are in memory.

    Raises:
        DataError: the file is no UTF-8, no JSON, or no list.
    """
    text = _Text(path, file, digest)
    text.skip_blank()
    if not text.next:
        raise DataError(f"{path}: is empty; expected a JSON list of samples")
    if text.next != "[":
        value, _ = text.value()
        text.skip_blank()
        if isinstance(value, dict) and text.next == "{":
            raise DataError(f"{path}: looks like JSON Lines; give it a name that ends in .jsonl")
        raise DataError(f"{path}: holds a JSON {_kind(value)}; expected a list of samples: [{{...}}, {{...}}]")
    text.skip_one()
    goes_on = text.next != "]"
    while goes_on:
        yield text.values()
        if text.next == "]":
            raise text.broken("a comma stands before the closing ]; remove it")
        yield Batch.of([text.value()[1]])
        text.skip_blank()
        if goes_on := text.next == ",":
            text.skip_one()
    if text.next != "]":
        raise text.broken("expected a comma or the closing ]")
    text.skip_one()
    if text.next:
        raise text.broken("there is more after the closing ]")


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
        return _raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise _invalid(path, error.msg, error.lineno + line - 1, error.colno) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; a thousand open brackets
        raise _unusable(path, error, text.count("\n", 0, start) + line) from None


def _slowly(path: Path, raw: bytes, line: Found) -> Found | None:
    """Read a line with the standard library; None where it is blank."""
    text = _decoded(path, raw.removesuffix(b"\n"), line.start, line.line)
    begin = _blank_end(text, 0)
    if begin == len(text):
        return None
    if line.line == 1 and text.strip() == "[":
        raise DataError(f"{path}: holds a JSON list, not one object a line; give it a name that ends in .json")
    value, end = parse(path, text, begin, line.line)
    if text[end:].strip():
        raise DataError(f"{path}:{line.line}: there is more after the line's object; write one object a line")
    start, length = line.start + len(text[:begin].encode()), len(text[begin:end].encode())
    return Found(start, length, line.line, _id_of(value))


def _id_of(value: Any) -> str | None:
    return id_text(value.get("id")) if isinstance(value, dict) else None


def _after_mark(path: Path, file: BinaryIO, digest: Digest) -> int:
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
        raise _not_utf8(path, data, error.start, start, line) from None


def _not_utf8(path: Path, data: bytes, at: int, start: int, line: int) -> DataError:
    line += data.count(b"\n", 0, at)
    return DataError(f"{path}:{line}: byte {start + at} (0x{data[at]:02x}) is not UTF-8; save the file as UTF-8")


@dataclass
class _Text:
    """A file's text, as far as it is read, and the place `at` which we are in it.

    What lies before the mark is done with: it goes when more is read.
    """

    path: Path
    file: BinaryIO
    digest: Digest
    text: str = ""
    at: int = 0
    mark: int = 0
    offset: int = 0
    """Of the mark in the file, in bytes."""
    line: int = 1
    column: int = 1
    """Of the mark, in characters from 1."""
    rest: bytes = b""
    """The first bytes of a character whose last ones are not yet read."""
    ended: bool = False

    def __post_init__(self) -> None:
        self.offset = self.read_to = _after_mark(self.path, self.file, self.digest)

    @property
    def next(self) -> str:
        """The next character; nothing at the end of the file."""
        while self.at == len(self.text) and not self.ended:
            self._read_on(_CHUNK)
        return self.text[self.at : self.at + 1]

    def skip_blank(self) -> None:
        """Go to the next character that is not blank."""
        while self.next and (end := _blank_end(self.text, self.at)) > self.at:
            self.at = end

    def skip_one(self) -> None:
        """Go past a character, and what is blank after it."""
        self.at += 1
        self.skip_blank()

    def value(self) -> tuple[Any, Found]:
        """Parse the value that begins here, and go past it; returns it with where it stands."""
        size = _CHUNK
        while True:
            try:
                value, end = _raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if self.ended or not self._may_be_cut(error):
                    raise _invalid(self.path, error.msg, *self.place(error.pos)) from None
            except (ValueError, RecursionError) as error:
                raise _unusable(self.path, error, self.place(self.at)[0]) from None
            else:
                if self.ended or end < len(self.text) - 2:  # a number may go on: 1 | 1e- | 1e-5
                    break
            self._read_on(size)
            size *= 2
        self._move_mark(self.at)
        start, line = self.offset, self.line
        self._move_mark(end)
        self.at = end
        return value, Found(start, self.offset - start, line, _id_of(value))

    def values(self) -> Batch:
        """Go past all values that lie, with a comma after each and what comes next, in what is read."""
        text, at = self.text, self.at
        starts, ends, own_ids = [], [], []
        while True:
            try:
                value, end = _raw_decode(text, at)
            except (ValueError, RecursionError):
                break  # `value` will say what is wrong with it, or read on
            comma = _COMMA.match(text, end)
            if comma is None or comma.end() == len(text):
                break
            starts.append(at)
            ends.append(end)
            own_ids.append(_id_of(value))
            at = comma.end()
        self.at = at
        return self._batch(np.array(starts, np.int64), np.array(ends, np.int64), own_ids)

    def _batch(self, starts: Array, ends: Array, own_ids: list[str | None]) -> Batch:
        """What stands at these places of the text; moves the mark to where we are."""
        piece = self.text[self.mark : self.at]
        if piece.isascii():
            characters = np.frombuffer(piece.encode(), np.uint8)
            offsets = np.arange(len(piece) + 1)
        else:
            characters = np.frombuffer(piece.encode("utf-32-le"), np.uint32)
            sizes = 1 + sum((characters > last).astype(np.int64) for last in (0x7F, 0x7FF, 0xFFFF))
            offsets = np.concatenate([[0], np.cumsum(sizes)])
        lines = self.line + np.searchsorted(np.flatnonzero(characters == ord("\n")), starts - self.mark)
        begin, end = offsets[starts - self.mark], offsets[ends - self.mark]
        batch = Batch(self.offset + begin, end - begin, lines, own_ids)
        self._move_mark(self.at)
        return batch

    def place(self, at: int) -> tuple[int, int]:
        """Line and column of a place behind the mark."""
        newlines = self.text.count("\n", self.mark, at)
        if not newlines:
            return self.line, self.column + at - self.mark
        return self.line + newlines, at - self.text.rfind("\n", self.mark, at)

    def broken(self, what: str) -> DataError:
        """What is wrong here."""
        return _invalid(self.path, what, *self.place(self.at))

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether a value may be incomplete only for not being read to its end."""
        return error.msg.startswith("Unterminated string") or error.pos > len(self.text) - _LONGEST_WORD

    def _move_mark(self, to: int) -> None:
        self.line, self.column = self.place(to)
        self.offset += len(self.text[self.mark : to].encode())
        self.mark = to

    def _read_on(self, size: int) -> None:
        chunk = self.file.read(size)
        self.digest.update(chunk)
        self.ended = not chunk
        data = self.rest + chunk
        try:
            more, used = codecs.utf_8_decode(data, "strict", self.ended)
        except UnicodeDecodeError as error:
            line = self.place(len(self.text))[0]
            raise _not_utf8(self.path, data, error.start, self.read_to, line) from None
        self.rest = data[used:]
        self.read_to += used
        self.text = self.text[self.mark :] + more
        self.at -= self.mark
        self.mark = 0


def _blank_end(text: str, at: int) -> int:
    blank = _BLANK.match(text, at)
    return blank.end() if blank else at


def _invalid(path: Path, what: str, line: int, column: int) -> DataError:
    return DataError(f"{path}: is not valid JSON: {what} at line {line}, column {column}")


def _unusable(path: Path, error: Exception, line: int) -> DataError:
    return DataError(f"{path}: is not usable JSON: {error}, in the value that starts at line {line}")


def _kind(value: Any) -> str:
    names = {dict: "object", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), type(value).__name__)
