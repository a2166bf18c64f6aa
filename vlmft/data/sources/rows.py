"""Samples out of rows: any table of rows, read by any format's parser."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vlmft.config.media import MediaRules
from vlmft.data.hashing import Hashes, hash_texts, rows_with_twins
from vlmft.data.media.paths import is_fetchable, is_url, resolve_frames, resolve_media
from vlmft.data.media.remote import fetch
from vlmft.data.problems import naming_sample
from vlmft.data.sources.parsed import NAMES, Parser, Reference, Turn, shown
from vlmft.data.spec import Rows
from vlmft.errors import DataError
from vlmft.types import Image, Media, Message, Sample, Target, Video

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


@runtime_checkable
class HashedTable(Protocol):
    """A table that has its ids' hashes at hand."""

    def id_hashes(self, name: str, rows: Rows) -> Hashes:
        """The hashes of the ids that rows have in a run of the entry `name`."""
        ...


@runtime_checkable
class OutlinedTable(Protocol):
    """A table whose rows hold media, which are much to read."""

    def outline(self, row: int) -> Any:
        """One row with each medium's size, as text, in place of its bytes."""
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
    shuffle_window: int = 8192

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
            media = [self._found(place, number, reference) for number, reference in enumerate(parsed.media)]
        messages = [*_messages(parsed.turns, iter(media))]
        if self.system_prompt and messages[0].role != "system":
            messages.insert(0, Message("system", (self.system_prompt,)))
        return Sample(sample_id, tuple(messages), place, self.rules, parsed.target)

    def id_hashes(self, rows: Rows) -> Hashes:
        """The hashes of the rows' ids; see `vlmft.data.hashing.id_hashes`."""
        if isinstance(self.table, HashedTable):
            return self.table.id_hashes(self.name, rows)
        return hash_texts(self.sample_id(int(row)) for row in rows)

    def check_row(self, row: int) -> None:
        """Raise `SampleError` where the row itself is malformed; touches no medium."""
        with naming_sample(self.sample_id(row), self.table.place(row)):
            self.parse(self.table.value(row))

    def target(self, row: int) -> Target | None:
        """See `Source.target`."""
        read = self.table.outline if isinstance(self.table, OutlinedTable) else self.table.value
        with naming_sample(self.sample_id(row), self.table.place(row)):
            return self.parse(read(row)).target

    def content_key(self, row: int) -> bytes:
        """A digest of the texts and media; of the raw value where the row is malformed."""
        return self._digest_of(row, self.table.value)

    def content_hint(self, row: int) -> bytes:
        """A digest that is equal where `content_key` is. Reads no media."""
        return self._digest_of(row, self.table.outline if isinstance(self.table, OutlinedTable) else self.table.value)

    def _digest_of(self, row: int, read: Callable[[int], Any]) -> bytes:
        said: object = f"{self.table.path}, row {row}"
        try:
            said = value = read(row)
            parsed = self.parse(value)
            said = (parsed.turns, [self._named(reference) for reference in parsed.media], parsed.target)
        except DataError:
            pass  # what cannot be read is like itself alone; it is refused where it is to be used
        return hashlib.blake2b(repr(said).encode(errors="backslashreplace"), digest_size=16).digest()

    def fingerprint(self) -> dict[str, str | int]:
        """See `Table.fingerprint`."""
        return self.table.fingerprint()

    def refuse_duplicate_ids(self) -> None:
        """Raise `DataError` where two rows would have the same id in a run."""
        seen: dict[str, int] = {}
        problems: list[str] = []
        for row in rows_with_twins(self):
            sample_id = self.sample_id(row)
            earlier = seen.setdefault(sample_id, row)
            if earlier != row:
                twin = f"row {earlier}" if self.shards is None else self.table.place(earlier)
                problems.append(
                    f"{sample_id} ({self.table.place(row)}): {twin} has the same id; "
                    "give each sample an id of its own, or none an id"
                )
        if len(problems) > _LISTED:
            problems[_LISTED:] = [f"{self.name}: {len(problems) - _LISTED} more ids stand twice in {self.data_file}"]
        DataError.raise_if(problems)

    def _found(self, place: str, number: int, reference: Reference) -> Media:
        """The medium that a reference names, its file found."""
        value = reference.value
        if isinstance(value, bytes):
            path = Path(f"{place}: {NAMES[reference.kind]} {number}")
            return Image(path, value) if reference.kind == "image" else Video(path, data=value)
        if reference.kind == "image":
            assert isinstance(value, str)
            return Image(self._file(value))
        if isinstance(value, str):
            in_folder = resolve_frames(self.media_dir, value) if self.media_dir and not is_url(value) else None
            if in_folder is None:
                return Video(self._file(value))
            return Video(in_folder[0].parent, in_folder, reference.fps)
        frames = tuple(self._file(frame) for frame in value)
        return Video(frames[0].parent, frames, reference.fps)

    def _file(self, reference: str) -> Path:
        """The file that a path or an address names."""
        if self.allow_urls and is_fetchable(reference):
            return fetch(reference)
        if self.media_dir is None:
            raise DataError(f"it names the file {shown(reference)}, but its entry has no media_dir; set it")
        return resolve_media(self.media_dir, reference)

    def _named(self, reference: Reference) -> object:
        """What tells one medium from another, without looking at the disk."""
        value = reference.value
        if isinstance(value, bytes):
            return hashlib.blake2b(value, digest_size=16).digest()
        base = self.media_dir or Path()
        named = [v if is_url(v) else os.path.normpath(base / v) for v in ([value] if isinstance(value, str) else value)]
        return named[0] if isinstance(value, str) else named


def _messages(turns: list[Turn], media: Iterator[Media]) -> Iterator[Message]:
    for turn in turns:
        yield Message(turn.role, tuple(next(media) if part is None else part for part in turn.parts))
