"""Prompts with solutions: what a model answers by itself is checked against them (GRPO)."""

from functools import partial
from typing import Any

from vlmft.data.placeholders import refuse_placeholder
from vlmft.data.sources.files import JsonDataset
from vlmft.data.sources.parsed import Parsed, Parser, check_characters, check_object, keys_of, text_of
from vlmft.data.sources.placing import Draft, refuse_tags, split_at_tags
from vlmft.data.sources.turns import conversation, read_turns, turns_of
from vlmft.errors import DataError
from vlmft.types import Solution

CONVERSATIONS = ("conversations", "messages")


class PromptDataset(JsonDataset):
    """Samples whose row is `{"id", "image" and/or "video", "prompt", "solution"}`.

    `prompt` is the question, or a list of turns. Or `conversations`, in LLaVA's format, gives both: its last turn is
    the solution. A solution is kept as it stands, `<answer>` tags and all.
    """

    def parser(self) -> Parser:
        """See `JsonDataset.parser`."""
        return partial(parse_prompt, frames_fps=self.frames_fps)


def parse_prompt(row: Any, frames_fps: float | None = None) -> Parsed:
    """Read a row as `PromptDataset` describes it.

    Args:
        frames_fps: how many frames make a second, where a video is given as frames.

    Raises:
        DataError: the row breaks a rule of the format.
    """
    row = check_object(row, "'prompt' and 'solution', or 'conversations'")
    if row.get("prompt") is None and row.get("solution") is None:
        drafts, solution = asked_and_answered(row, "solution", frames_fps)
    else:
        drafts = prompt_of(row, frames_fps)
        solution = _solution(row)
    parsed = conversation(row, drafts, frames_fps, ends_in_question=True)
    return Parsed(parsed.turns, parsed.media, Solution(solution))


def prompt_of(row: dict[str, Any], frames_fps: float | None = None) -> list[Draft]:
    """What a row asks: the text or the turns under 'prompt', or the turns under 'conversations' or 'messages'.

    Raises:
        DataError: it gives none of these or two, or they cannot be read.
    """
    given = [key for key in ("prompt", *CONVERSATIONS) if row.get(key) is not None]
    if not given:
        raise DataError(f"it has no 'prompt' {keys_of(row)}; expected the question, or a list of turns")
    if len(given) > 1:
        raise DataError(f"it has both '{given[0]}' and '{given[1]}'; give the question once")
    found = row[given[0]]
    if isinstance(found, str):
        check_characters(found, "its 'prompt'")
        return [Draft("user", split_at_tags(found))]
    return read_turns(found, given[0], frames_fps=frames_fps)


def asked_and_answered(row: dict[str, Any], what: str, frames_fps: float | None = None) -> tuple[list[Draft], str]:
    """The turns under 'conversations' or 'messages' without the last, and what the assistant says in that.

    Args:
        what: the last turn is called this in messages.

    Raises:
        DataError: there are no turns, the last is not the assistant's, or they cannot be read.
    """
    drafts = turns_of(row, *CONVERSATIONS, frames_fps=frames_fps)
    if drafts[-1].role != "assistant":
        raise DataError(f"the last turn is the {drafts[-1].role}'s; expected the assistant's, with the {what}")
    return drafts[:-1], _said(drafts[-1], f"turn {len(drafts)}")


def _solution(row: dict[str, Any]) -> str:
    if "solution" not in row:
        raise DataError(f"it has no 'solution' {keys_of(row)}; expected the text that answers are checked against")
    found = row["solution"]
    return str(found) if type(found) is int else _checked(found, "its 'solution'")


def answer_of(row: dict[str, Any], key: str) -> str:
    """The answer under `key`: a text, an assistant's turn, or a list of that one turn.

    Raises:
        DataError: it is missing, none of these, empty, or has a tag.
    """
    found = row.get(key)
    if found is None:
        raise DataError(f"it has no '{key}' {keys_of(row)}; expected an answer")
    if isinstance(found, str):
        return _checked(found, f"its '{key}'")
    turns = read_turns([found] if isinstance(found, dict) else found, key)
    if len(turns) > 1 or turns[0].role != "assistant":
        roles = ", ".join(turn.role for turn in turns)
        raise DataError(f"its '{key}' has the turns {roles}; expected the assistant's answer alone")
    return _said(turns[0], f"its '{key}'")


def _said(draft: Draft, where: str) -> str:
    """The text of an answer, which holds no medium."""
    for part in draft.parts:
        if not isinstance(part, str):
            raise DataError(f"{where} holds a medium or its tag; pictures and videos may only stand in the prompt")
    return "".join(part for part in draft.parts if isinstance(part, str))


def _checked(found: Any, where: str) -> str:
    text = text_of(found, where)
    refuse_tags(text, where)
    refuse_placeholder(text, where)
    return text
