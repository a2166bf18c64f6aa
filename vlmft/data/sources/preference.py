"""Preference pairs: a prompt with two answers, of which people prefer one (DPO)."""

from functools import partial
from typing import Any

from vlmft.data.sources.files import JsonDataset
from vlmft.data.sources.parsed import Parsed, Parser, check_object
from vlmft.data.sources.prompts import answer_of, prompt_of
from vlmft.data.sources.turns import conversation
from vlmft.errors import DataError
from vlmft.types import Preference


class PreferenceDataset(JsonDataset):
    """Samples whose row is `{"id", "image" and/or "video", "prompt", "chosen", "rejected"}`.

    `prompt` is the question, or a list of turns that ends with the user's; `conversations` is read as such a list, too.
    `chosen` and `rejected` are texts, or the assistant's turn.
    """

    def parser(self) -> Parser:
        """See `JsonDataset.parser`."""
        return partial(parse_preference, frames_fps=self.frames_fps)


def parse_preference(row: Any, frames_fps: float | None = None) -> Parsed:
    """Read a row as `PreferenceDataset` describes it.

    Args:
        frames_fps: how many frames make a second, where a video is given as frames.

    Raises:
        DataError: the row breaks a rule of the format, or its answers are the same.
    """
    row = check_object(row, "'prompt', 'chosen' and 'rejected'")
    pair = Preference(answer_of(row, "chosen"), answer_of(row, "rejected"))
    if pair.chosen.strip() == pair.rejected.strip():
        raise DataError("its 'chosen' and 'rejected' are the same answer; give two, or leave the sample out")
    parsed = conversation(row, prompt_of(row, frames_fps), frames_fps, ends_in_question=True)
    return Parsed(parsed.turns, parsed.media, pair)
