"""The rules of a LLaVA conversation: roles, the order of turns, and where pictures and videos stand.

Everything here raises plain `DataError`; the source adds the sample's id and place.
"""

import re
from pathlib import PurePosixPath
from typing import Any

from vlmft.data.sources.parsed import (
    MEDIUM,
    NAMES,
    Kind,
    Parsed,
    Reference,
    Turn,
    check_characters,
    check_id,
    check_order,
    counted,
    media_first,
)
from vlmft.errors import DataError
from vlmft.types import Role

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm")
"""A list of such files under 'video' is one video, given as its frames."""

_TAGS: dict[str, Kind] = {"<image>": "image", "<video>": "video"}
_TAG = re.compile(r"<(image|video)>(?:\r?\n)?")
_LAST_NEWLINE = re.compile(r"\r?\n\Z")


def parse_conversation(row: Any, is_video: bool = False, frames_fps: float | None = None) -> Parsed:
    """Read a LLaVA row.

    Args:
        is_video: the entry holds videos: an `<image>` tag stands for one, as in LLaVA-Video's files.
        frames_fps: how many frames make a second, where a video is given as frames.

    Raises:
        DataError: the row breaks a rule of the format.
    """
    if not isinstance(row, dict):
        raise DataError(f"the row is a {type(row).__name__}; expected an object with 'conversations'")
    check_id(row.get("id"))
    media = media_of(row, frames_fps)
    spoken = spoken_turns(row)
    check_order([role for role, _ in spoken])
    if is_video and media["image"]:
        raise DataError("it has the key 'image', but its entry says is_video: true; call it 'video'")
    return place_media(spoken, media, is_video)


def media_of(row: dict[str, Any], frames_fps: float | None = None) -> dict[Kind, list[Reference]]:
    """The pictures and videos that a row names under 'image' and 'video', each a path or a list of them."""
    for kind in NAMES:
        if row.get(f"{kind}s") and not row.get(kind):
            raise DataError(
                f"it has the key '{kind}s'; this format calls it '{kind}', for one {NAMES[kind]} and for a list alike"
            )
    return {
        "image": [Reference("image", path) for path in _paths(row.get("image"), "image")],
        "video": _videos(row.get("video"), frames_fps),
    }


def place_media(spoken: list[tuple[Role, str]], media: dict[Kind, list[Reference]], is_video: bool = False) -> Parsed:
    """Put media where the texts' tags stand; without any tag, all before the first user turn, pictures first."""
    tags = _tags(spoken, is_video)
    if not tags:
        turns = [Turn(role, (text,) if text else ()) for role, text in spoken]
        together = [*media["image"], *media["video"]]
        return Parsed(media_first(turns, len(together)) if together else turns, together)
    for kind, noun in NAMES.items():
        if tags.count(kind) != len(media[kind]):
            tag = (
                "<image>"
                if is_video and kind == "video" and not any("<video>" in t for _, t in spoken)
                else f"<{kind}>"
            )
            raise DataError(
                f"its text has {counted(tags.count(kind), f'{tag} tag')}, but it has "
                f"{counted(len(media[kind]), noun)}; write one tag for each {noun}, or no tag at all"
            )
    turns = [Turn(role, split_at_tags(text) if role == "user" else (text,) if text else ()) for role, text in spoken]
    remaining = {kind: iter(references) for kind, references in media.items()}
    return Parsed(turns, [next(remaining[kind]) for kind in tags])


def _paths(found: Any, key: str) -> list[str]:
    paths = [] if found is None else found if isinstance(found, list) else [found]
    for path in paths:
        if not isinstance(path, str) or not path.strip():
            raise DataError(f"its '{key}' holds {path!r}; expected a path, or a list of paths")
        check_characters(path, f"its '{key}'")
    return paths


def _videos(found: Any, frames_fps: float | None) -> list[Reference]:
    """A path is a video file or a folder of frames; a list of pictures is one video; any other list is several."""
    if not isinstance(found, list):
        return [Reference("video", path, frames_fps) for path in _paths(found, "video")]
    if found and all(isinstance(item, str) and _is_picture(item) for item in found):
        return [Reference("video", tuple(_paths(found, "video")), frames_fps)]
    references = []
    for item in found:
        if isinstance(item, list):
            if not item:
                raise DataError("its 'video' holds an empty list of frames; expected at least one")
            references.append(Reference("video", tuple(_paths(item, "video")), frames_fps))
        else:
            references += [Reference("video", path, frames_fps) for path in _paths([item], "video")]
    return references


def _is_picture(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in PICTURE_SUFFIXES


def spoken_turns(row: dict[str, Any]) -> list[tuple[Role, str]]:
    """The (role, text) of each turn under 'conversations'."""
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
    check_characters(text, f"turn {number}")
    if role == "assistant" and not text.strip():
        raise DataError(f"turn {number} is an empty answer; give the answer, or leave the sample out")
    return role, text


def _tags(spoken: list[tuple[Role, str]], is_video: bool) -> list[Kind]:
    """The kinds of the texts' tags, in reading order."""
    for number, (role, text) in enumerate(spoken, start=1):
        if role != "user" and (found := next((tag for tag in _TAGS if tag in text), None)):
            noun = NAMES[_TAGS[found]]
            raise DataError(
                f"turn {number} is the {role}'s and has a {found} tag; {noun}s may only stand in user turns"
            )
    tags = [match[1] for _, text in spoken for match in _TAG.finditer(text)]
    return ["video" if is_video or tag == "video" else "image" for tag in tags]


def split_at_tags(text: str) -> tuple[str | None, ...]:
    """Cut a text at its tags.

    LLaVA sets a tag off from the text by a newline that means nothing else ("<image>\\nWhat is this?"). It
    belongs to the tag, so that such a sample equals one whose format keeps pictures and text apart.
    """
    texts = _TAG.split(text)[::2]
    if len(texts) > 1 and not texts[-1]:
        last = max((i for i, piece in enumerate(texts) if piece), default=0)
        texts[last] = _LAST_NEWLINE.sub("", texts[last])
    parts: list[str | None] = []
    for number, piece in enumerate(texts):
        parts += [MEDIUM] if number else []
        parts += [piece] if piece else []
    return tuple(parts)
