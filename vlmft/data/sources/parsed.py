"""A row of any format, checked, its media not yet looked up; and the rules that all formats share.

Everything here raises plain `DataError`; the source adds the sample's id and place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vlmft.errors import DataError
from vlmft.types import Role, Target

MEDIUM = None
"""Stands in a turn's parts where the sample's next picture or video belongs."""

Kind = Literal["image", "video"]
NAMES: dict[Kind, str] = {"image": "picture", "video": "video"}
"""What messages call a kind of medium."""

_SHOWN = 80  # characters of a value that a message quotes


@dataclass(frozen=True, slots=True)
class Reference:
    """A picture or video as a row names it."""

    kind: Kind
    value: str | bytes | tuple[str, ...]
    """A path below the media folder, or a URL; the encoded medium itself; or the frames of a video, each a path."""
    fps: float | None = None
    """Of a video that is given as frames."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A message whose media are not yet looked up: text, or `MEDIUM`, in order."""

    role: Role
    parts: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a row says. `media` holds one reference for each `MEDIUM` of the turns, in reading order."""

    turns: list[Turn]
    media: list[Reference] = field(default_factory=list)
    target: Target | None = None


Parser = Callable[[Any], Parsed]
"""Reads one row of a format. Raises `DataError` where it breaks a rule."""


def check_id(found: Any) -> None:
    """Raise `DataError` where a row's id is no string or number."""
    if isinstance(found, bool) or not isinstance(found, str | int | float | None):
        raise DataError(f"its id is a {type(found).__name__}; expected a string or a number, or no id at all")
    if isinstance(found, str):
        check_characters(found, "its id")


def check_characters(text: str, where: str) -> None:
    """Raise `DataError` where a text holds half of a surrogate pair, which no UTF-8 file, or file name, can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds half a character (\\u{ord(text[error.start]):04x}) at position {error.start}; "
            "write both halves of the pair, or the character itself"
        ) from None


def check_order(roles: Sequence[Role], ends_in_question: bool = False) -> None:
    """Raise `DataError` where the turns cannot be learned from.

    Args:
        ends_in_question: the row is a prompt, whose answers stand elsewhere (preference pairs, solutions, labels).
    """
    if "system" in roles[1:]:
        raise DataError(f"turn {roles.index('system', 1) + 1} is a system turn; it may only stand first")
    if "assistant" not in roles and not ends_in_question:
        raise DataError("it has no assistant turn, so there is nothing to learn; add the answer")
    if "user" not in roles:
        raise DataError("it has no user turn; add the question")
    for number, (before, role) in enumerate(zip(roles, roles[1:], strict=False), start=2):
        if before == role == "assistant":
            raise DataError(
                f"turns {number - 1} and {number} are both the assistant's; join them, or add the user's turn"
            )
    if ends_in_question and roles[-1] != "user":
        raise DataError(f"the last turn is the {roles[-1]}'s; a prompt ends with the user's turn")
    if not ends_in_question and roles[-1] != "assistant":
        raise DataError(f"the last turn is the {roles[-1]}'s; add its answer, or remove the turn")


def check_object(row: Any, expected: str) -> dict[str, Any]:
    """The row, which has to be an object with an id of the right type. `expected` says with what, for the message.

    Raises:
        DataError: it is something else.
    """
    if not isinstance(row, dict):
        raise DataError(f"the row is a {type(row).__name__}; expected an object with {expected}")
    check_id(row.get("id"))
    return row


def text_of(found: Any, where: str) -> str:
    """The text found at `where` ("its 'chosen'").

    Raises:
        DataError: it is no text, is empty, or holds half a character.
    """
    if not isinstance(found, str):
        raise DataError(f"{where} is {shown(found)}; expected a text")
    check_characters(found, where)
    if not found.strip():
        raise DataError(f"{where} is empty; write the text, or leave the sample out")
    return found


def keys_of(row: dict[str, Any]) -> str:
    """The keys of a row that lacks one, for the message."""
    return f"(its keys: {', '.join(map(str, row)) or 'none'})"


def shown(value: Any) -> str:
    """A value of any size as a message quotes it."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def counted(number: int, noun: str) -> str:
    """`1 picture`, `2 pictures`, `no pictures`."""
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
