"""Where pictures and videos stand in a conversation: at tags in its texts, as parts, or before it all."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vlmft.data.sources.parsed import MEDIUM, NAMES, Kind, Parsed, Reference, Turn, counted
from vlmft.errors import DataError
from vlmft.types import Role

_TAG = re.compile(r"<(image|video)>(?:\r?\n)?")
_LAST_NEWLINE = re.compile(r"\r?\n\Z")


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for the next medium of the row's list; `tag` is how the text marks it, for messages."""

    kind: Kind
    tag: str


@dataclass(frozen=True, slots=True)
class Draft:
    """A turn as its author wrote it: texts, places for media that the row lists elsewhere, and media themselves."""

    role: Role
    parts: tuple[str | Slot | Reference, ...]


def place_media(drafts: Sequence[Draft], listed: dict[Kind, list[Reference]]) -> Parsed:
    """Put the media that a row lists where its texts' tags stand; without any, all before the first user turn.

    Pictures then come before videos. A row that has media in its messages already says where each stands.

    Raises:
        DataError: a medium or tag stands outside the user's turns; tags and media differ in number.
    """
    for number, draft in enumerate(drafts, start=1):
        _refuse_media(number, draft)
    parts = [part for draft in drafts for part in draft.parts]
    slots = [part for part in parts if isinstance(part, Slot)]
    together = [*listed["image"], *listed["video"]]
    if together and not slots:
        if any(isinstance(part, Reference) for part in parts):
            raise DataError(
                f"it has media in its messages, and {' and '.join(_amounts(listed))} beside them without a place; "
                "write a tag (<image>, <video>) where each belongs"
            )
        first = next(i for i, draft in enumerate(drafts) if draft.role == "user")
        drafts = [Draft(d.role, (*together, *d.parts)) if i == first else d for i, d in enumerate(drafts)]
    else:
        _check_numbers(slots, listed)
    return _filled(drafts, listed)


def split_at_tags(text: str, is_video: bool = False) -> tuple[str | Slot, ...]:
    """Cut a text at its tags.

    LLaVA sets a tag off from the text by a newline that means nothing else ("<image>\\nWhat is this?"). It
    belongs to the tag, so that such a sample equals one whose format keeps pictures and text apart.

    Args:
        is_video: an `<image>` tag stands for a video, as in LLaVA-Video's files.
    """
    texts = _TAG.split(text)
    slots = [Slot("video" if is_video or tag == "video" else "image", f"<{tag}>") for tag in texts[1::2]]
    pieces = texts[::2]
    if slots and not pieces[-1]:
        last = max((i for i, piece in enumerate(pieces) if piece), default=0)
        pieces[last] = _LAST_NEWLINE.sub("", pieces[last])
    parts: list[str | Slot] = [pieces[0]] if pieces[0] else []
    for slot, piece in zip(slots, pieces[1:], strict=True):
        parts += [slot, piece] if piece else [slot]
    return tuple(parts)


def refuse_tags(text: str, where: str) -> None:
    """Raise `DataError` where a text that stands outside the conversation has a tag."""
    for part in split_at_tags(text):
        if isinstance(part, Slot):
            raise DataError(f"{where} has the tag {part.tag}; {NAMES[part.kind]}s may only stand in the prompt")


def _refuse_media(number: int, draft: Draft) -> None:
    if draft.role == "user":
        return
    for part in draft.parts:
        if not isinstance(part, str):
            noun = NAMES[part.kind]
            what = f"has the tag {part.tag}" if isinstance(part, Slot) else f"holds a {noun}"
            raise DataError(f"turn {number} is the {draft.role}'s and {what}; {noun}s may only stand in user turns")


def _check_numbers(slots: list[Slot], listed: dict[Kind, list[Reference]]) -> None:
    for kind, noun in NAMES.items():
        tags = [slot.tag for slot in slots if slot.kind == kind]
        if len(tags) != len(listed[kind]):
            tag = tags[0] if tags and len({*tags}) == 1 else f"<{kind}>"
            raise DataError(
                f"its text has {counted(len(tags), f'{tag} tag')}, but it has {counted(len(listed[kind]), noun)}; "
                f"write one tag for each {noun}, or no tag at all"
            )


def _amounts(listed: dict[Kind, list[Reference]]) -> list[str]:
    return [counted(len(listed[kind]), noun) for kind, noun in NAMES.items() if listed[kind]]


def _filled(drafts: Sequence[Draft], listed: dict[Kind, list[Reference]]) -> Parsed:
    """The turns with a `MEDIUM` for each place, and the media in reading order; texts side by side become one."""
    remaining = {kind: iter(references) for kind, references in listed.items()}
    media: list[Reference] = []
    turns = []
    for draft in drafts:
        parts: list[str | None] = []
        for part in draft.parts:
            if not isinstance(part, str):
                media.append(part if isinstance(part, Reference) else next(remaining[part.kind]))
                parts.append(MEDIUM)
            elif part and parts and parts[-1] is not MEDIUM:
                parts[-1] += part
            elif part:
                parts.append(part)
        turns.append(Turn(draft.role, tuple(parts)))
    return Parsed(turns, media)
