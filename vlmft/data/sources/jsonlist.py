"""Find the elements of a JSON list: where each stands in its file, and what it is called."""

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vlmft.data.sources.index import Array
from vlmft.data.sources.jsonscan import (
    CHUNK,
    Batch,
    Digest,
    Found,
    after_mark,
    blank_end,
    invalid,
    not_utf8,
    own_id_of,
    raw_decode,
    unusable,
)
from vlmft.errors import DataError

_COMMA = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")
_LONGEST_WORD = 16  # characters that a decoder takes in at once: -Infinity, \ud83d\ude00


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
        self.offset = self.read_to = after_mark(self.path, self.file, self.digest)

    @property
    def next(self) -> str:
        """The next character; nothing at the end of the file."""
        while self.at == len(self.text) and not self.ended:
            self._read_on(CHUNK)
        return self.text[self.at : self.at + 1]

    def skip_blank(self) -> None:
        """Go to the next character that is not blank."""
        while self.next and (end := blank_end(self.text, self.at)) > self.at:
            self.at = end

    def skip_one(self) -> None:
        """Go past a character, and what is blank after it."""
        self.at += 1
        self.skip_blank()

    def value(self) -> tuple[Any, Found]:
        """Parse the value that begins here, and go past it; returns it with where it stands."""
        size = CHUNK
        while True:
            try:
                value, end = raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if self.ended or not self._may_be_cut(error):
                    raise invalid(self.path, error.msg, *self.place(error.pos)) from None
            except (ValueError, RecursionError) as error:
                raise unusable(self.path, error, self.place(self.at)[0]) from None
            else:
                if self.ended or end < len(self.text) - 2:  # a number may go on: 1 | 1e- | 1e-5
                    break
            self._read_on(size)
            size *= 2
        self._move_mark(self.at)
        start, line = self.offset, self.line
        self._move_mark(end)
        self.at = end
        return value, Found(start, self.offset - start, line, own_id_of(value))

    def values(self) -> Batch:
        """Go past all values that lie, with a comma after each and what comes next, in what is read."""
        text, at = self.text, self.at
        starts, ends, own_ids = [], [], []
        while True:
            try:
                value, end = raw_decode(text, at)
            except (ValueError, RecursionError):
                break  # `value` will say what is wrong with it, or read on
            comma = _COMMA.match(text, end)
            if comma is None or comma.end() == len(text):
                break
            starts.append(at)
            ends.append(end)
            own_ids.append(own_id_of(value))
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
        return invalid(self.path, what, *self.place(self.at))

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
            raise not_utf8(self.path, data, error.start, self.read_to, line) from None
        self.rest = data[used:]
        self.read_to += used
        self.text = self.text[self.mark :] + more
        self.at -= self.mark
        self.mark = 0


def _kind(value: Any) -> str:
    names = {dict: "object", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), type(value).__name__)
