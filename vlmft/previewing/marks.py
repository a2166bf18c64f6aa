"""Boxes and points that a conversation names, where they lie in the picture that the tower gets."""

from collections.abc import Sequence
from dataclasses import dataclass

from vlmft.config.media import CoordinateStyle
from vlmft.data.media import coordinates
from vlmft.types import Sample

_SIDE = {"thousand": 1000.0, "unit": 1.0}


@dataclass(frozen=True, slots=True)
class Mark:
    """A box, or a point with no width and no height, in shares of the picture's sides."""

    text: str
    """As the conversation writes it."""
    left: float
    top: float
    width: float
    height: float
    is_box: bool


def marks_of(sample: Sample, style: CoordinateStyle, seen: Sequence[tuple[int, int]]) -> list[tuple[Mark, ...]]:
    """The marks in each of the sample's pictures and videos, whose (height, width) are `seen`.

    Args:
        sample: with its marks written in the family's `style`, and thus checked.
    """
    found: list[list[Mark]] = [[] for _ in seen]
    texts = [part for message in sample.messages for part in message.parts if isinstance(part, str)]
    for text in texts:
        for mark in coordinates.find_marks(text):
            number = (mark.image or 1) - 1
            height, width = seen[number] if style == "seen_pixels" else (_SIDE[style],) * 2
            box = mark.box("pixels")  # whatever the numbers count: sides of the same unit
            sides = ((box.right - box.left) / width, (box.bottom - box.top) / height)
            words = text[mark.start : mark.end]
            found[number].append(Mark(words, box.left / width, box.top / height, *sides, mark.kind == "box"))
    return [tuple(marks) for marks in found]
