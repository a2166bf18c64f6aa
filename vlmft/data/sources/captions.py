"""Structured captions: videos or pictures with rows of fields that follow a JSON Schema."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from vlmft.data.placeholders import refuse_placeholder
from vlmft.data.sources.caption_schema import CaptionSchema, read_schema
from vlmft.data.sources.files import JsonDataset
from vlmft.data.sources.parsed import MEDIUM, NAMES, Kind, Parsed, Parser, Turn, check_object, keys_of
from vlmft.data.sources.references import read_references
from vlmft.errors import DataError

METADATA = "metadata.jsonl"
SCHEMA = "schema.json"
_NOUNS: dict[Kind, str] = {"image": "image", "video": "video"}  # as a question calls them


class CaptionsDataset(JsonDataset):
    """Samples whose row is `{"video": path, "caption": ..., "event_type": ..., ...}`: a medium, and fields of a schema.

    The question lists the schema's fields with what may stand in each; the answer is the row's fields as JSON, keys in
    the schema's order, with `, ` and `: ` between. Lists that the schema calls `uniqueItems` and whose items it names
    take its order; all others keep their own. Keys that the schema does not name are refused, unless it says
    `additionalProperties`.
    """

    data_path: Annotated[Path, Field(description=f"The {METADATA}, or the folder that holds it.")]
    schema_path: Annotated[
        Path | None, Field(description=f"The JSON Schema of the captions. Default: {SCHEMA} beside {METADATA}.")
    ] = None
    media_key: Annotated[
        Literal["video", "image"] | None, Field(description="The key of a row's medium; null: the one that it has.")
    ] = None
    prompt: Annotated[
        str | None, Field(min_length=1, description="What is asked, before the list of fields; null: in vlmft's words.")
    ] = None

    def data_file(self, path: Path) -> Path:
        """See `JsonDataset.data_file`."""
        found = self.located(path)
        return found / METADATA if found.is_dir() else found

    def parser(self) -> Parser:
        """See `JsonDataset.parser`. Raises `DataError` where the schema cannot be used."""
        path = self.located(self.schema_path) if self.schema_path else self.data_file(self.data_path).parent / SCHEMA
        return partial(
            parse_caption,
            schema=read_schema(path),
            media_key=self.media_key,
            prompt=self.prompt,
            frames_fps=self.frames_fps,
        )


def parse_caption(
    row: Any,
    schema: CaptionSchema,
    media_key: Kind | None = None,
    prompt: str | None = None,
    frames_fps: float | None = None,
) -> Parsed:
    """Read a row as `CaptionsDataset` describes it.

    Args:
        schema: of the caption alone.
        media_key: the key of the medium; None: whichever of 'video' and 'image' the row has.
        prompt: what is asked, before the list of fields.
        frames_fps: how many frames make a second, where a video is given as frames.

    Raises:
        DataError: the row names no medium or two kinds, or breaks the schema; all problems are listed.
    """
    row = check_object(row, "'video' or 'image', and the schema's fields")
    kind = media_key or _kind_of(row)
    media = read_references(row.get(kind), kind, f"its '{kind}'", frames_fps)
    if not media:
        raise DataError(f"it has no '{kind}' {keys_of(row)}; expected the path of a {NAMES[kind]}")
    caption = {name: value for name, value in row.items() if name not in (kind, "id")}
    DataError.raise_if(schema.problems(caption))
    answer = schema.answer(caption)
    refuse_placeholder(answer)
    lead = prompt or f"Describe the {_NOUNS[kind]} as one JSON object and nothing else. Its fields, in this order:"
    question = Turn("user", (MEDIUM,) * len(media) + (f"{lead}\n{schema.fields()}",))
    return Parsed([question, Turn("assistant", (answer,))], media)


def _kind_of(row: dict[str, Any]) -> Kind:
    found: list[Kind] = [kind for kind in NAMES if row.get(kind) is not None]
    if len(found) != 1:
        what = "both 'image' and 'video'" if found else "neither 'image' nor 'video'"
        raise DataError(f"it has {what} {keys_of(row)}; expected one medium (media_key says which key it stands under)")
    return found[0]
