"""Boxes and points that a sample's texts hold: found, checked, and rewritten for the picture that the model sees.

    "bbox_2d": [x1, y1, x2, y2]   "bbox": ...             JSON, and text that looks like it
    "point_2d": [x, y]            "point": ...
    <box>x1,y1,x2,y2</box>        <point>x,y</point>      also as [[...], [...]] or (x1,y1),(x2,y2) inside
    <|box_start|>(x1,y1),(x2,y2)<|box_end|>               where the checkpoint's tokenizer has no such control tokens

A sample's only picture or video needs no name. One of several is named by a number from 1, in reading order: the key
"image" of the same object (or of one around it), or `<box image=2>`. Only the numbers of a text change.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from vlmft.config.media import CoordinateForm, CoordinateStyle
from vlmft.errors import DataError
from vlmft.types import Message, Preference, Rated, Sample, Solution, Target

if TYPE_CHECKING:
    from vlmft.data.media.augment import View

Kind = Literal["box", "point"]

_COUNT: dict[Kind, int] = {"box": 4, "point": 2}
_ORDER: dict[Kind, str] = {"box": "x1, y1, x2, y2", "point": "x, y"}
_MOST: dict[CoordinateForm | CoordinateStyle, int] = {"unit": 1, "thousand": 1000}
_DECIMALS: dict[CoordinateStyle, int] = {"seen_pixels": 0, "thousand": 0, "unit": 3}
_SLACK = 1e-6  # what dividing and multiplying by a side may leave over its end, as a share
_MEND = "mend the numbers, or say with the entry's `coordinates` how they are written"

# Quotes may be escaped: JSON inside of a JSON string.
_MARK = re.compile(
    r"""
      (?P<quote>\\*["']) (?P<key>bbox|point)(?:_2d)? (?P=quote) \s*:\s*
          \[ (?P<list> (?: [^][] | \[[^][]*\] )* ) (?P<end> \] )?
    | <(?P<tag>box|point) (?: \s+image\s*=\s* ["']? (?P<image>[0-9]+) ["']? )? \s*>
          (?P<inside> [^<]* ) (?P<close> </(?P=tag)> )?
    | <\|box_start\|> (?P<between> [^<]* ) (?P<stop> <\|box_end\|> )?
    """,
    re.VERBOSE,
)
_NUMBER = re.compile(
    r"(?<![\w.]) [+-]? (?: (?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)? | nan | inf(?:inity)? ) (?![\w.])",
    re.VERBOSE | re.IGNORECASE,
)
_SEPARATORS = re.compile(r"[\s,()\[\]]+")
_INNER_LIST = re.compile(r"\[[^\[\]]*\]")
_STRUCTURE = re.compile(r"""[{}]|["']image\\*["']\s*:\s*(?P<image>[0-9]+)(?![\w.])""")


@dataclass(frozen=True, slots=True)
class Box:
    """A box of one picture or video, or a point where its sides are equal; by default in pixels of the original."""

    left: float
    top: float
    right: float
    bottom: float
    form: CoordinateForm = "pixels"

    def pixels(self, height: int, width: int) -> "Box":
        """The same box in pixels of its original, which has this size."""
        if self.form == "pixels":
            return self
        x, y = width / _MOST[self.form], height / _MOST[self.form]
        return Box(self.left * x, self.top * y, self.right * x, self.bottom * y)


@dataclass(frozen=True, slots=True)
class Mark:
    """A box or point where it stands in a text. `numbers` are as written: x1, y1, x2, y2 or x, y."""

    kind: Kind
    start: int
    end: int
    numbers: tuple[float, ...]
    spans: tuple[tuple[int, int], ...]
    """Of each number, the characters [start, end)."""
    image: int | None = None
    """Which of the sample's pictures and videos, from 1; None where the text does not say."""

    def box(self, form: CoordinateForm) -> Box:
        """A point is a box without size."""
        left, top, right, bottom = *self.numbers[:2], *self.numbers[-2:]
        return Box(left, top, right, bottom, form)


def find_marks(text: str) -> list[Mark]:
    """Every box and point of a text. What holds no number (`[x1, y1, x2, y2]`, `<box></box>`) is none.

    Raises:
        DataError: a mark has another number of numbers, or something else among them, or does not end.
    """
    marks: list[Mark] = []
    objects: _Objects | None = None
    for match in _MARK.finditer(text):
        group = next(name for name in ("list", "inside", "between") if match[name] is not None)
        if not _NUMBER.search(match[group]):
            continue
        if not (match["end"] or match["close"] or match["stop"]):
            raise DataError(f"its text has {_quoted(match[0])}, which does not end; write the closing bracket or tag")
        image = int(match["image"]) if match["image"] else None
        if match["key"]:
            objects = objects or _Objects(text)
            image = objects.image(match.start())
        kind: Kind = "point" if "point" in (match["key"], match["tag"]) else "box"
        marks += [Mark(kind, *match.span(), *numbers, image) for numbers in _numbers(kind, match, group)]
    return marks


def marked_boxes(sample: Sample, form: CoordinateForm) -> list[list[Box]]:
    """The boxes and points of each of the sample's pictures and videos, in reading order.

    Raises:
        DataError: as `find_marks`; a mark names no picture of several, or one that is not there; or its numbers are
            outside of `form`.
    """
    boxes: list[list[Box]] = [[] for _ in sample.media]
    for text in _texts(sample):
        for mark in _checked_marks(sample, text, form):
            boxes[_medium(sample, text, mark)].append(mark.box(form))
    return boxes


def rewrite(
    sample: Sample,
    views: "Sequence[View]",
    seen: Sequence[tuple[int, int]],
    form: CoordinateForm,
    style: CoordinateStyle,
) -> Sample:
    """Write every box and point for the pictures as the model sees them: cropped, mirrored, resized.

    Whole numbers for pixels and thousandths, three decimals for shares. A box that a crop cuts ends at its border.

    Args:
        views: of each picture and video, in reading order, what is seen of it.
        seen: the (height, width) of each after resizing.
        form: how the sample's texts write them.
        style: how the family does.

    Raises:
        DataError: as `marked_boxes`; or a mark lies outside of its picture, or outside of what is seen of it.
    """

    def written(text: str) -> str:
        pieces: list[str] = []
        position = 0
        for mark in _checked_marks(sample, text, form):
            number = _medium(sample, text, mark)
            try:
                numbers = _seen_numbers(mark, views[number], seen[number], form, style)
            except DataError as error:
                raise _named(sample, text, mark, str(error)) from None
            for (start, end), value in zip(mark.spans, numbers, strict=True):
                pieces += [text[position:start], value]
                position = end
        return "".join([*pieces, text[position:]]) if pieces else text

    messages = tuple(
        Message(m.role, tuple(written(part) if isinstance(part, str) else part for part in m.parts))
        for m in sample.messages
    )
    return replace(sample, messages=messages, target=_target(sample.target, written))


class _Objects:
    """The objects of a text that looks like JSON, and the number that each gives as "image"."""

    def __init__(self, text: str) -> None:
        self._parents: list[int] = []
        self._images: dict[int, int] = {}
        self._starts, self._inside = [0], [-1]  # from each of these characters on, inside of which object
        current = -1
        for token in _STRUCTURE.finditer(text):
            if token["image"]:
                self._images.setdefault(current, int(token["image"]))
                continue
            if token[0] == "{":
                self._parents.append(current)
                current = len(self._parents) - 1
            elif current >= 0:
                current = self._parents[current]
            self._starts.append(token.start())
            self._inside.append(current)

    def image(self, position: int) -> int | None:
        """The number given by the innermost object around `position` that gives one."""
        current = self._inside[bisect_right(self._starts, position) - 1]
        while current >= 0 and current not in self._images:
            current = self._parents[current]
        return self._images[current] if current >= 0 else None


def _numbers(
    kind: Kind, match: re.Match[str], group: str
) -> Iterator[tuple[tuple[float, ...], tuple[tuple[int, int], ...]]]:
    """The numbers of each box or point between a mark's brackets, with their places in the text."""
    content, start = match[group], match.start(group)
    found = list(_NUMBER.finditer(content))
    if other := _SEPARATORS.sub("", _NUMBER.sub("", content)):
        raise DataError(f"its text has {_quoted(match[0])}, with {other[:20]!r} among its numbers; write numbers alone")
    lists = [inner.span() for inner in _INNER_LIST.finditer(content)] or [(0, len(content))]
    each = [[number for number in found if low <= number.start() < high] for low, high in lists]
    count = _COUNT[kind]
    if any(len(numbers) != count for numbers in each) or len(found) != count * len(lists):
        raise DataError(
            f"its text has {_quoted(match[0])}, {len(found)} numbers; write {_ORDER[kind]} for each {kind}, every one "
            "under a key, in a tag or in a list of its own"
        )
    for numbers in each:
        spans = tuple((start + number.start(), start + number.end()) for number in numbers)
        yield tuple(float(number[0]) for number in numbers), spans


def _checked_marks(sample: Sample, text: str, form: CoordinateForm) -> Iterator[Mark]:
    """`find_marks` with the sample's id in every message, and numbers that `form` allows."""
    try:
        marks = find_marks(text)
    except DataError as error:
        raise DataError(f"sample {sample.id}: {error}") from None
    for mark in marks:
        if problem := _problem(mark, form):
            raise _named(sample, text, mark, problem)
        yield mark


def _problem(mark: Mark, form: CoordinateForm) -> str | None:
    most = _MOST.get(form, math.inf)
    for number in mark.numbers:
        if not (-_SLACK <= number <= most * (1 + _SLACK) and math.isfinite(number)):
            bounds = "0 or more" if form == "pixels" else f"0 to {most:g}"
            return f"{number:.9g} is outside of what `coordinates: {form}` allows, {bounds}; {_MEND}"
    box = mark.box(form)
    if box.right < box.left or box.bottom < box.top:
        return "its second corner lies before its first; write left, top, right, bottom (not a width and a height)"
    return None


def _medium(sample: Sample, text: str, mark: Mark) -> int:
    """Which of the sample's pictures and videos a mark is about."""
    count = len(sample.media)
    if not count:
        raise _named(sample, text, mark, "but the sample has no picture; add it, or leave `coordinates` null")
    # The key "image" beside an only picture may be that picture's number in its own data set.
    if count == 1 and (mark.image is None or text[mark.start] != "<"):
        return 0
    if mark.image is None:
        which = '"image": n to its object' if text[mark.start] != "<" else "the picture: <box image=n>"
        raise _named(sample, text, mark, f"but the sample has {count} pictures; add {which}, counted from 1")
    if not 1 <= mark.image <= count:
        raise _named(sample, text, mark, f"for picture {mark.image}, but the sample has {count}, counted from 1")
    return mark.image - 1


def _seen_numbers(
    mark: Mark, view: "View", seen: tuple[int, int], form: CoordinateForm, style: CoordinateStyle
) -> list[str]:
    """A mark's numbers as the family writes them for what it sees."""
    box = mark.box(form).pixels(view.height, view.width)
    within = box.right <= view.width * (1 + _SLACK) and box.bottom <= view.height * (1 + _SLACK)
    if form == "pixels" and not within:
        raise DataError(f"it reaches beyond its picture of {view.width} x {view.height} pixels; {_MEND}")
    left, right = _clipped(box.left, box.right, view.left, view.crop_width)
    top, bottom = _clipped(box.top, box.bottom, view.top, view.crop_height)
    if view.flipped:
        left, right = view.crop_width - right, view.crop_width - left
    height, width = seen if style == "seen_pixels" else (_MOST[style],) * 2
    across, down = width / view.crop_width, height / view.crop_height
    values = [left * across, top * down, right * across, bottom * down]
    return [f"{value:.{_DECIMALS[style]}f}" for value in values[: len(mark.numbers)]]


def _clipped(low: float, high: float, start: int, length: int) -> tuple[float, float]:
    first, last = max(0.0, low - start), min(high - start, float(length))  # 0.0 first: never "-0"
    if first > last or (first == last and low < high):
        raise DataError(f"it lies outside of what is seen of its picture, pixels {start} to {start + length} of a side")
    return first, last


def _target(target: Target | None, written: Callable[[str], str]) -> Target | None:
    if isinstance(target, Preference):
        return Preference(written(target.chosen), written(target.rejected))
    if isinstance(target, Rated):
        return replace(target, answer=written(target.answer), mismatched=_foreign(target.mismatched, written))
    return Solution(written(target.text)) if isinstance(target, Solution) else target


def _foreign(text: str | None, written: Callable[[str], str]) -> str | None:
    """Another sample's answer; None where its marks are of pictures that this sample has not."""
    try:
        return None if text is None else written(text)
    except DataError:
        return None


def _texts(sample: Sample) -> Iterator[str]:
    for message in sample.messages:
        yield from (part for part in message.parts if isinstance(part, str))
    if isinstance(sample.target, Preference):
        yield from (sample.target.chosen, sample.target.rejected)
    elif isinstance(sample.target, Rated):
        yield sample.target.answer
    elif isinstance(sample.target, Solution):
        yield sample.target.text


def _named(sample: Sample, text: str, mark: Mark, problem: str) -> DataError:
    return DataError(f"sample {sample.id}: its text has {_quoted(text[mark.start : mark.end])}: {problem}")


def _quoted(text: str) -> str:
    return f"`{text[:80]}{'...' if len(text) > 80 else ''}`"
