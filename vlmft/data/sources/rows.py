"""Samples out of rows: any table of rows, read by any format's parser."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vlmft.config.media import MediaRules
from vlmft.data.hashing import id_hashes
from vlmft.data.media.paths import resolve_frames, resolve_media
from vlmft.data.problems import naming_sample
from vlmft.data.sources.parsed import Parser, Reference, Turn
from vlmft.errors import DataError
from vlmft.types import Image, Media, Message, Sample, Video

_LISTED = 5  # duplicate ids named in one message


class Table(Protocol):
    """Rows of one file, or of many files in order; each is read when it is asked for."""

    @property
    def path(self) -> Path:
        """The file, or the folder or pattern of the files, as messages name it."""
        ...

    @property
    def shards(self) -> Sequence[int] | None:
        """How many rows each file holds, where reading them in order is what makes it fast; None: any order will do."""
        ...

    def __len__(self) -> int: ...

    def value(self, row: int) -> Any:
        """One row, parsed. Raises `DataError` where it cannot be read."""
        ...

    def place(self, row: int) -> str:
        """Where a row stands, for messages: `<file>:<line>, row <row>`; lines count from 1, rows from 0."""
        ...

    def own_id(self, row: int) -> str | None:
        """The row's own id as text, or None where it gives none; cheap."""
        ...

    def fingerprint(self) -> dict[str, str | int]:
        """`sha256` of what the rows are read from, and number of `rows`."""
        ...


@dataclass(frozen=True)
class RowSource:
    """The samples of one table."""

    name: str
    table: Table
    parse: Parser
    media_dir: Path | None = None
    """Absolute and free of symlinks; None where rows bring their media with them."""
    rules: MediaRules = field(default=MediaRules())
    system_prompt: str | None = None
    allow_urls: bool = False

    @property
    def data_file(self) -> Path:
        """The file that the rows stand in."""
        return self.table.path

    @property
    def shards(self) -> Sequence[int] | None:
        """See `Table.shards`."""
        return self.table.shards

    def __len__(self) -> int:
        return len(self.table)

    def sample_id(self, row: int) -> str:
        """`<entry>/<id>`, or `<entry>/<row>` where the file gives none."""
        found = self.table.own_id(row)
        return f"{self.name}/{row if found is None else found}"

    def __getitem__(self, row: int) -> Sample:
        sample_id, place = self.sample_id(row), self.table.place(row)
        with naming_sample(sample_id, place):
            parsed = self.parse(self.table.value(row))
            media = [self._found(number, reference) for number, reference in enumerate(parsed.media)]
        messages = [*_messages(parsed.turns, iter(media))]
        if self.system_prompt and messages[0].role != "system":
            messages.insert(0, Message("system", (self.system_prompt,)))
        return Sample(sample_id, tuple(messages), place, self.rules, parsed.target)

    def check_row(self, row: int) -> None:
        """Raise `SampleError` where the row itself is malformed; touches no medium."""
        with naming_sample(self.sample_id(row), self.table.place(row)):
            self.parse(self.table.value(row))

    def content_key(self, row: int) -> bytes:
        """A digest of the texts and media; of the raw value where the row is malformed."""
        try:
            value = self.table.value(row)
            parsed = self.parse(value)
        except DataError as error:
            said: object = (str(error), row)
        else:
            said = (parsed.turns, [self._named(reference) for reference in parsed.media], parsed.target)
        return hashlib.blake2b(repr(said).encode(errors="backslashreplace"), digest_size=16).digest()

    def fingerprint(self) -> dict[str, str | int]:
        """See `Table.fingerprint`."""
        return self.table.fingerprint()

    def refuse_duplicate_ids(self) -> None:
        """Raise `DataError` where two rows would have the same id in a run."""
        hashes = id_hashes(self, range(len(self)))
        _, first, times = np.unique(hashes, return_index=True, return_counts=True)
        if len(first) == len(hashes):
            return
        twice = np.flatnonzero(np.isin(hashes, hashes[first[times > 1]]))
        seen: dict[str, int] = {}
        problems: list[str] = []
        for row in twice.tolist():
            sample_id = self.sample_id(row)
            earlier = seen.setdefault(sample_id, row)
            if earlier != row:
                problems.append(
                    f"{sample_id} ({self.table.place(row)}): row {earlier} has the same id; "
                    "give each sample an id of its own, or none an id"
                )
        if len(problems) > _LISTED:
            problems[_LISTED:] = [f"{self.name}: {len(problems) - _LISTED} more ids stand twice in {self.data_file}"]
        DataError.raise_if(problems)

    def _found(self, number: int, reference: Reference) -> Media:
        """The medium that a reference names, its file found."""
        value = reference.value
        if isinstance(value, bytes):
            path = self.data_file / f"medium {number}"
            return Image(path, value) if reference.kind == "image" else Video(path, data=value)
        if self.media_dir is None:
            raise DataError(f"it names the {reference.kind} {value!r}, but its entry has no media_dir; set it")
        if reference.kind == "image":
            assert isinstance(value, str)
            return Image(resolve_media(self.media_dir, value))
        frames = resolve_frames(self.media_dir, value)
        if frames is None:
            assert isinstance(value, str)
            return Video(resolve_media(self.media_dir, value))
        return Video(frames[0].parent, frames, reference.fps)

    def _named(self, reference: Reference) -> object:
        """What tells one medium from another, without looking at the disk."""
        value = reference.value
        if isinstance(value, bytes):
            return hashlib.blake2b(value, digest_size=16).digest()
        base = self.media_dir or Path()
        return os.path.normpath(base / value) if isinstance(value, str) else [os.path.normpath(base / v) for v in value]


def _messages(turns: list[Turn], media: Iterator[Media]) -> Iterator[Message]:
    for turn in turns:
        yield Message(turn.role, tuple(next(media) if part is None else part for part in turn.parts))
