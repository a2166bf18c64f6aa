"""The turns of a conversation, as LLaVA and ShareGPT ('from', 'value') or OpenAI ('role', 'content') spell them."""

from typing import Any

from vlmft.data.placeholders import refuse_placeholder
from vlmft.data.sources.parsed import (
    NAMES,
    Kind,
    Parsed,
    Reference,
    Turn,
    check_characters,
    check_order,
    keys_of,
    shown,
    text_of,
)
from vlmft.data.sources.placing import Draft, Slot, place_media, split_at_tags
from vlmft.data.sources.references import read_reference, read_references
from vlmft.errors import DataError
from vlmft.types import Role

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}
_TOOL_ROLES = ("tool", "function", "function_call", "observation", "tool_call", "tool_response", "ipython")
_TOOL_KEYS = ("tool_calls", "function_call", "tool_call_id")
_UNREAD_KEYS = ("audio", "refusal", "reasoning_content")
_PART_TYPES: dict[str, Kind] = {"image": "image", "image_url": "image", "video": "video", "video_url": "video"}


def read_turns(found: Any, key: str, is_video: bool = False, frames_fps: float | None = None) -> list[Draft]:
    """Read the list of turns that stands under `key`.

    Args:
        is_video: an `<image>` tag stands for a video.
        frames_fps: how many frames make a second, where a video is given as frames.

    Raises:
        DataError: it is no list of turns, a role is unknown or a tool's, a text is missing or no text, an answer empty.
    """
    if not isinstance(found, list | tuple) or not len(found):
        what = "an empty list" if isinstance(found, list | tuple) else f"a {type(found).__name__}"
        raise DataError(f"its '{key}' is {what}; expected a list of turns")
    return [read_turn(turn, f"turn {number}", is_video, frames_fps) for number, turn in enumerate(found, start=1)]


def read_turn(turn: Any, where: str, is_video: bool = False, frames_fps: float | None = None) -> Draft:
    """Read one turn; `where` names it in messages. As `read_turns`."""
    if not isinstance(turn, dict):
        raise DataError(
            f"{where} is a {type(turn).__name__}; expected {{'from': ..., 'value': ...}} or "
            "{'role': ..., 'content': ...}"
        )
    if turn.get("role") is None and turn.get("content") is None:
        speaker, said, content = f"is from {shown(turn.get('from'))}", turn.get("from"), turn.get("value")
    else:
        speaker, said, content = f"has the role {shown(turn.get('role'))}", turn.get("role"), turn.get("content")
    _refuse_tools(turn, said, where)
    role = ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise DataError(f"{where} {speaker}; expected one of {', '.join(ROLES)}")
    parts = _content(content, where, is_video, frames_fps)
    if role == "assistant" and not any(not isinstance(part, str) or part.strip() for part in parts):
        raise DataError(f"{where} is an empty answer; give the answer, or leave the sample out")
    if role == "assistant":
        refuse_placeholder("".join(part for part in parts if isinstance(part, str)), where)
    return Draft(role, parts)


def turns_of(row: dict[str, Any], *keys: str, is_video: bool = False, frames_fps: float | None = None) -> list[Draft]:
    """The turns that a row has under the first of `keys` that it gives. As `read_turns`."""
    key = next((key for key in keys if row.get(key) is not None), None)
    if key is None:
        raise DataError(f"it has no '{keys[0]}' {keys_of(row)}; expected a list of turns")
    return read_turns(row[key], key, is_video, frames_fps)


def conversation(
    row: dict[str, Any], drafts: list[Draft], frames_fps: float | None = None, ends_in_question: bool = False
) -> Parsed:
    """The turns in their order, with the row's media in their places and its own 'system' text before them.

    Args:
        ends_in_question: the row is a prompt, whose answers stand elsewhere.

    Raises:
        DataError: the turns' order cannot be learned from, media do not fit, or there are two system turns.
    """
    check_order([draft.role for draft in drafts], ends_in_question)
    parsed = place_media(drafts, media_of(row, frames_fps))
    if not row.get("system"):
        return parsed
    system = text_of(row["system"], "its 'system'")
    if drafts[0].role == "system":
        raise DataError("it has a system turn and the key 'system'; leave one of them out")
    return Parsed([Turn("system", (system,)), *parsed.turns], parsed.media)


def media_of(row: dict[str, Any], frames_fps: float | None = None, plural: bool = True) -> dict[Kind, list[Reference]]:
    """The pictures and videos that a row lists under 'image' and 'video', or under 'images' and 'videos'.

    Args:
        frames_fps: how many frames make a second, where a video is given as frames.
        plural: whether the format knows the plural keys, too.

    Raises:
        DataError: what stands there names no media, or both keys of a kind are given.
    """
    return {kind: _listed(row, kind, frames_fps, plural) for kind in NAMES}


def _listed(row: dict[str, Any], kind: Kind, frames_fps: float | None, plural: bool) -> list[Reference]:
    one, many = row.get(kind), row.get(f"{kind}s")
    if not many:
        return read_references(one, kind, f"its '{kind}'", frames_fps)
    if not plural:
        raise DataError(
            f"it has the key '{kind}s'; this format calls it '{kind}', for one {NAMES[kind]} and for a list alike"
        )
    if one is not None:
        raise DataError(f"it has both '{kind}' and '{kind}s'; put all its {NAMES[kind]}s under one of them")
    if kind == "video" and isinstance(many, list | tuple):  # each item is a video: a list of pictures is none
        return [read_reference(item, kind, "its 'videos'", frames_fps) for item in many]
    return read_references(many, kind, f"its '{kind}s'", frames_fps)


def _refuse_tools(turn: dict[str, Any], speaker: Any, where: str) -> None:
    if speaker in _TOOL_ROLES:
        raise DataError(f"{where} is from {speaker!r}: calls of tools are not trained; leave the sample out")
    if key := next((key for key in _TOOL_KEYS if turn.get(key)), None):
        raise DataError(f"{where} has '{key}': calls of tools are not trained; leave the sample out")
    if key := next((key for key in _UNREAD_KEYS if turn.get(key)), None):
        raise DataError(f"{where} has '{key}', which is not read; put what is to be learned into its text")
    if turn.get("weight", 1) not in (1, None):
        raise DataError(f"{where} has the weight {shown(turn['weight'])}; every answer is trained alike: remove it")


def _content(content: Any, where: str, is_video: bool, frames_fps: float | None) -> tuple[str | Slot | Reference, ...]:
    if isinstance(content, str):
        check_characters(content, where)
        return split_at_tags(content, is_video)
    if not isinstance(content, list | tuple):
        raise DataError(f"{where} has the value {shown(content)}; expected a string, or a list of parts")
    parts: list[str | Slot | Reference] = []
    for number, part in enumerate(content, start=1):
        parts += _part(part, f"{where}, part {number}", is_video, frames_fps)
    return tuple(parts)


def _part(part: Any, where: str, is_video: bool, frames_fps: float | None) -> tuple[str | Slot | Reference, ...]:
    """A typed part; keys without a value are none, as Hugging Face datasets fill them in."""
    given = {key: value for key, value in part.items() if value is not None} if isinstance(part, dict) else {}
    name = given.pop("type", None)
    if name == "text" and isinstance(given.get("text"), str):
        _refuse_keys(given, ("text",), where)
        check_characters(given["text"], where)
        return split_at_tags(given["text"], is_video)
    kind = _PART_TYPES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise DataError(
            f"{where} is {shown(part)}; expected {{'type': 'text', 'text': ...}}, or a part of the type "
            f"{', '.join(_PART_TYPES)}"
        )
    _refuse_keys(given, (name,), where)
    if name not in given:
        return (Slot(kind, f"<{kind}>"),)
    value = given[name]
    if name.endswith("_url") and isinstance(value, dict):
        _refuse_keys(value, ("url", "detail"), where)  # 'detail' chooses between the sizes of OpenAI's own models
        value = value.get("url")
    return (read_reference(value, kind, where, frames_fps),)


def _refuse_keys(given: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for key, value in given.items():
        if key not in known and value is not None:
            raise DataError(
                f"{where} has the key '{key}', which is not read; leave it out "
                "(sizes and frames are chosen in the entry: image, video)"
            )
