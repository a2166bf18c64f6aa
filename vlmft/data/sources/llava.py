"""LLaVA files: a JSON list, or JSON Lines, of conversations with pictures beside them."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from vlmft.data.media.paths import resolve_media
from vlmft.data.problems import naming_sample
from vlmft.data.sources.conversation import parse_conversation
from vlmft.data.sources.jsonrows import JsonRows, read_json_rows
from vlmft.data.spec import DatasetSpec
from vlmft.errors import DataError
from vlmft.types import Image, Message, Sample

_LISTED = 5  # duplicate ids named in one message


class LLaVADataset(DatasetSpec):
    """Samples in LLaVA's format, as VILA and Qwen2-VL-Finetune read it.

    Relative paths start from `root`; `~` is the user's home.
    """

    data_path: Annotated[Path, Field(description="The .json (a list) or .jsonl file of the training samples.")]
    media_dir: Annotated[
        Path | None, Field(description="Folder of the pictures, which may not leave it. Default: data_path's folder.")
    ] = None
    eval_data_path: Annotated[
        Path | None, Field(description="A file of the same format with the held-out samples.")
    ] = None
    is_video: Annotated[bool, Field(description="The entry holds videos (not read yet).")] = False

    def open(self, name: str) -> "LLaVASource":
        """Open the training rows. Raises `DataError` where the file cannot be used."""
        return self._open(name, "data_path", self.data_path)

    def open_eval(self, name: str) -> "LLaVASource | None":
        """Open the rows of `eval_data_path`; None where the entry has none."""
        return self._open(name, "eval_data_path", self.eval_data_path) if self.eval_data_path else None

    def _open(self, name: str, key: str, path: Path) -> "LLaVASource":
        if self.is_video:
            raise DataError(
                f"{name}: is_video: true: videos are not read yet; set is_video: false if the entry holds pictures, "
                "or leave it out of the run"
            )
        data_file = self._located(path)
        media_dir = self._located(self.media_dir) if self.media_dir else self._located(self.data_path).parent
        if not data_file.is_file():
            what = "is a folder, not a file" if data_file.is_dir() else "does not exist"
            raise DataError(f"{name}: {key} {data_file} {what}; give the path of a .json or .jsonl file")
        if not media_dir.is_dir():
            raise DataError(f"{name}: media_dir {media_dir} is not a folder; give the folder that the pictures lie in")
        try:
            rows = read_json_rows(data_file)
        except DataError as error:
            raise DataError(*(f"{name}: {problem}" for problem in error.problems)) from error
        source = LLaVASource(name, data_file, media_dir.resolve(), rows, self.system_prompt)
        source.refuse_duplicate_ids()
        return source

    def _located(self, path: Path) -> Path:
        return (self.root or Path()).expanduser().absolute() / path.expanduser()


@dataclass(frozen=True)
class LLaVASource:
    """The samples of one LLaVA file."""

    name: str
    data_file: Path
    media_dir: Path
    rows: JsonRows
    system_prompt: str | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def sample_id(self, row: int) -> str:
        """`<entry>/<id>`, or `<entry>/<row>` where the file gives none."""
        found = self.rows.ids[row]
        return f"{self.name}/{row if found is None else found}"

    def __getitem__(self, row: int) -> Sample:
        sample_id, place = self.sample_id(row), self.rows.place(row)
        with naming_sample(sample_id, place):
            turns, references = parse_conversation(self.rows.value(row))
            pictures = iter([Image(resolve_media(self.media_dir, reference)) for reference in references])
        messages = [
            Message(turn.role, tuple(next(pictures) if part is None else part for part in turn.parts)) for turn in turns
        ]
        if self.system_prompt and messages[0].role != "system":
            messages.insert(0, Message("system", (self.system_prompt,)))
        return Sample(sample_id, tuple(messages), place)

    def check_row(self, row: int) -> None:
        """Raise `SampleError` where the row itself is malformed; touches no picture."""
        with naming_sample(self.sample_id(row), self.rows.place(row)):
            parse_conversation(self.rows.value(row))

    def content_key(self, row: int) -> bytes:
        """A digest of the texts and picture paths; of the raw value where the row is malformed."""
        value = self.rows.value(row)
        try:
            turns, references = parse_conversation(value)
        except DataError:
            said: object = value
        else:
            paths = (os.path.normpath(self.media_dir / reference) for reference in references)
            said = (turns, list(paths))
        return hashlib.blake2b(repr(said).encode(errors="backslashreplace"), digest_size=16).digest()

    def fingerprint(self) -> dict[str, str | int]:
        """`sha256` of the data file and number of `rows`."""
        return {"sha256": self.rows.sha256, "rows": len(self)}

    def refuse_duplicate_ids(self) -> None:
        """Raise `DataError` where two rows would have the same id in a run."""
        first: dict[str, int] = {}
        problems: list[str] = []
        for row in range(len(self)):
            sample_id = self.sample_id(row)
            earlier = first.setdefault(sample_id, row)
            if earlier != row:
                problems.append(
                    f"{sample_id} ({self.rows.place(row)}): row {earlier} has the same id; "
                    "give each sample an id of its own, or none an id"
                )
        if len(problems) > _LISTED:
            problems[_LISTED:] = [f"{self.name}: {len(problems) - _LISTED} more ids stand twice in {self.data_file}"]
        DataError.raise_if(problems)
