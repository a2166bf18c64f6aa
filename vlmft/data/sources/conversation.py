"""The rules of a LLaVA conversation: roles, the order of turns, and where the pictures stand.

Everything here raises plain `DataError`; the source adds the sample's id and place.
"""

import re
from dataclasses import dataclass
from typing import Any

from vlmft.errors import DataError
from vlmft.types import Role

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
PICTURE = None
"""Stands in a turn's parts where the sample's next picture belongs."""

_TAG = "<image>"
_TAG_AND_NEWLINE = re.compile(r"<image>(?:\r?\n)?")
_LAST_NEWLINE = re.compile(r"\r?\n\Z")


@dataclass(frozen=True, slots=True)
class Turn:
    """A message whose pictures are not yet looked up: text, or `PICTURE`, in order."""

    role: Role
    parts: tuple[str | None, ...]


def parse_conversation(row: Any) -> tuple[list[Turn], list[str]]:
    """Return a LLaVA row's turns, and its picture references in reading order.

    Raises:
        DataError: the row breaks a rule of the format.
    """
    if not isinstance(row, dict):
        raise DataError(f"the row is a {type(row).__name__}; expected an object with 'conversations'")
    _check_id(row.get("id"))
    pictures = _pictures(row)
    spoken = _spoken(row)
    _check_order([role for role, _ in spoken])
    tags = _count_tags(spoken)
    if tags and tags != len(pictures):
        raise DataError(
            f"its text has {_count(tags, f'{_TAG} tag')}, but it has {_count(len(pictures), 'picture')}; "
            "write one tag for each picture, or none at all"
        )
    turns = [Turn(role, _split(text) if tags and role == "user" else (text,) if text else ()) for role, text in spoken]
    if pictures and not tags:
        first = next(i for i, turn in enumerate(turns) if turn.role == "user")
        turns[first] = Turn("user", (PICTURE,) * len(pictures) + turns[first].parts)
    return turns, pictures


def _check_id(found: Any) -> None:
    if isinstance(found, bool) or not isinstance(found, str | int | float | None):
        raise DataError(f"its id is a {type(found).__name__}; expected a string or a number, or no id at all")
    if isinstance(found, str):
        _check_characters(found, "its id")


def _pictures(row: dict[str, Any]) -> list[str]:
    if row.get("video") or row.get("videos"):
        raise DataError("it has a video: videos are not read yet; leave the sample out, or give its frames as 'image'")
    if row.get("images") and not row.get("image"):
        raise DataError("it has the key 'images'; this format calls it 'image', for one picture and for a list alike")
    found = row.get("image")
    pictures = [] if found is None else found if isinstance(found, list) else [found]
    for picture in pictures:
        if not isinstance(picture, str) or not picture.strip():
            raise DataError(f"its 'image' holds {picture!r}; expected a path, or a list of paths")
        _check_characters(picture, "its 'image'")
    return pictures


def _spoken(row: dict[str, Any]) -> list[tuple[Role, str]]:
    if "conversations" not in row:
        raise DataError(
            f"it has no 'conversations' (its keys: {', '.join(row) or 'none'}); "
            "expected a list of {'from': 'human' or 'gpt', 'value': text}"
        )
    turns = row["conversations"]
    if not isinstance(turns, list) or not turns:
        what = "an empty list" if turns == [] else f"a {type(turns).__name__}"
        raise DataError(f"its 'conversations' is {what}; expected a list of turns")
    return [_turn(number, turn) for number, turn in enumerate(turns, start=1)]


def _turn(number: int, turn: Any) -> tuple[Role, str]:
    if not isinstance(turn, dict):
        raise DataError(f"turn {number} is a {type(turn).__name__}; expected {{'from': ..., 'value': ...}}")
    speaker, text = turn.get("from"), turn.get("value")
    role = ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise DataError(f"turn {number} is from {speaker!r}; expected one of {', '.join(ROLES)}")
    if not isinstance(text, str):
        raise DataError(f"turn {number} has the value {text!r}; expected a string")
    _check_characters(text, f"turn {number}")
    if role == "assistant" and not text.strip():
        raise DataError(f"turn {number} is an empty answer; give the answer, or leave the sample out")
    return role, text


def _check_characters(text: str, where: str) -> None:
    """Raise `DataError` where a text holds half of a surrogate pair, which no UTF-8 file, or file name, can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds half a character (\\u{ord(text[error.start]):04x}) at position {error.start}; "
            "write both halves of the pair, or the character itself"
        ) from None


def _check_order(roles: list[Role]) -> None:
    if "system" in roles[1:]:
        raise DataError(f"turn {roles.index('system', 1) + 1} is a system turn; it may only stand first")
    if "assistant" not in roles:
        raise DataError("it has no assistant turn, so there is nothing to learn; add the answer ('from': 'gpt')")
    if "user" not in roles:
        raise DataError("it has no user turn; add the question ('from': 'human')")
    for number, (before, role) in enumerate(zip(roles, roles[1:], strict=False), start=2):
        if before == role == "assistant":
            raise DataError(
                f"turns {number - 1} and {number} are both the assistant's; join them, or add the user's turn"
            )
    if roles[-1] != "assistant":
        raise DataError(f"the last turn is the {roles[-1]}'s; add its answer, or remove the turn")


def _count_tags(spoken: list[tuple[Role, str]]) -> int:
    for number, (role, text) in enumerate(spoken, start=1):
        if "<video>" in text:
            raise DataError(f"turn {number} has a <video> tag: videos are not read yet; remove the tag")
        if role != "user" and _TAG in text:
            raise DataError(
                f"turn {number} is the {role}'s and has an {_TAG} tag; pictures may only stand in user turns"
            )
    return sum(text.count(_TAG) for _, text in spoken)


def _split(text: str) -> tuple[str | None, ...]:
    """Cut a text at its tags.

    LLaVA sets a tag off from the text by a newline that means nothing else ("<image>\\nWhat is this?"). It
    belongs to the tag, so that such a sample equals one whose format keeps pictures and text apart.
    """
    texts = _TAG_AND_NEWLINE.split(text)
    if len(texts) > 1 and not texts[-1]:
        last = max((i for i, piece in enumerate(texts) if piece), default=0)
        texts[last] = _LAST_NEWLINE.sub("", texts[last])
    parts: list[str | None] = []
    for number, piece in enumerate(texts):
        parts += [PICTURE] if number else []
        parts += [piece] if piece else []
    return tuple(parts)


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
