"""Single answers, each good or bad (KTO)."""

from functools import partial
from typing import Any

from vlmft.data.sources.files import JsonDataset
from vlmft.data.sources.parsed import Parsed, Parser, check_object, keys_of, shown
from vlmft.data.sources.prompts import answer_of, asked_and_answered, prompt_of
from vlmft.data.sources.turns import conversation
from vlmft.errors import DataError
from vlmft.types import Rated


class UnpairedDataset(JsonDataset):
    """Samples whose row is `{"id", "image" and/or "video", "prompt", "completion", "label"}`.

    `prompt` is the question, or a list of turns that ends with the user's; `completion` is a text, or the assistant's
    turn. Or `conversations` (or `messages`) gives both: its last turn is the answer. `label` is true for a good answer,
    false for a bad one.
    """

    def parser(self) -> Parser:
        """See `JsonDataset.parser`."""
        return partial(parse_unpaired, frames_fps=self.frames_fps)


def parse_unpaired(row: Any, frames_fps: float | None = None) -> Parsed:
    """Read a row as `UnpairedDataset` describes it.

    Args:
        frames_fps: how many frames make a second, where a video is given as frames.

    Raises:
        DataError: the row breaks a rule of the format, or its label is neither true nor false.
    """
    row = check_object(row, "'prompt', 'completion' and 'label'")
    if row.get("prompt") is None and row.get("completion") is None:
        drafts, answer = asked_and_answered(row, "answer", frames_fps)
    else:
        drafts, answer = prompt_of(row, frames_fps), answer_of(row, "completion")
    rated = Rated(answer, _label(row))
    parsed = conversation(row, drafts, frames_fps, ends_in_question=True)
    return Parsed(parsed.turns, parsed.media, rated)


def _label(row: dict[str, Any]) -> bool:
    found = row.get("label")
    if found is None:
        raise DataError(f"it has no 'label' {keys_of(row)}; expected true for a good answer, false for a bad one")
    if not isinstance(found, bool):
        raise DataError(f"its 'label' is {shown(found)}; expected true for a good answer, false for a bad one")
    return found
