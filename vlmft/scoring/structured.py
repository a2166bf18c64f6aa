"""Answers that are JSON objects, as structured captions are: do they keep to the schema, and what do they get right?"""

import json
import math
from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from vlmft.data.sources.caption_schema import CaptionSchema, read_schema
from vlmft.errors import DataError
from vlmft.scoring.answers import answer_of
from vlmft.scoring.base import MetricSpec, shown
from vlmft.scoring.text import ExactMatch

_FENCE = "```"
_DEEPEST = 50  # far beyond any caption, and far below Python's recursion limit


def parse_object(text: str) -> dict[str, Any]:
    """Return the JSON object that a text's answer is, alone or as one fenced block of code.

    Raises:
        ValueError: it is none, something stands beside it, a key stands there twice, a number is NaN or Infinity, or it
            is nested more than 50 deep.
    """
    answer = answer_of(text)
    if answer.startswith(_FENCE) and answer.endswith(_FENCE) and len(answer) > 2 * len(_FENCE):
        answer = answer.removeprefix(_FENCE).removeprefix("json").removesuffix(_FENCE)
    try:
        found = json.loads(answer, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"it is a {type(found).__name__}")
    if _is_deeper(found, _DEEPEST):
        raise ValueError(f"it is nested more than {_DEEPEST} deep")
    return found


def _is_deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_is_deeper(item, levels - 1) for item in inner)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def _reference_object(reference: str) -> dict[str, Any]:
    try:
        return parse_object(reference)
    except ValueError as error:
        raise DataError(f"its reference {shown(reference)} is no JSON object: {error}") from None


class JsonValidity(MetricSpec):
    """1 where the answer is one JSON object that keeps to the schema, else 0; what it says does not matter.

    The object stands alone or as one fenced block of code, after reasoning or in `<answer>` tags. No key stands there
    twice. The schema is read as `CaptionsDataset` reads it: keys that it does not name break it, unless it says
    `additionalProperties`; `id`, `image` and `video` are no part of it. References have to keep to it as well.
    """

    is_binary: ClassVar[bool] = True

    schema_path: Path | None = Field(
        default=None,
        description="the JSON Schema, such as the schema.json of a CaptionsDataset, relative to the working folder; "
        "null: any object",
    )
    _schema: CaptionSchema | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _read(self) -> Self:
        if self.schema_path is not None:
            try:
                self._schema = read_schema(self.schema_path.expanduser())
            except DataError as error:
                raise ValueError(str(error)) from None
        return self

    def score(self, prediction: str, reference: str) -> float:
        """Return 1.0 for an object that keeps to the schema, else 0.0."""
        try:
            found = parse_object(prediction)
        except ValueError:
            return 0.0
        return float(self._schema is None or not self._schema.problems(found))

    def check(self, reference: str) -> None:
        """Raise `DataError` where the reference itself is no such object, as with the schema of another dataset."""
        found = _reference_object(reference)
        if self._schema is not None:
            DataError.raise_if(
                f"its reference breaks the schema {self.schema_path}: {problem}"
                for problem in self._schema.problems(found)
            )


class FieldAccuracy(MetricSpec):
    """How much of the reference's JSON object an answer gets right: the mean over the fields, each from 0 to 1.

    Counted are the fields of the reference and those that the answer has beside them; one that is not in both scores
    0. An answer that is no JSON object (see `json`) scores 0.

    - Texts are compared as `exact_match` compares them; numbers by value (1 is 1.0); true, false and null as they are.
    - A list scores its F1: twice the items that both have over the items of both, in whatever order, each counted as
      often as it stands there; two empty ones score 1. With `lists=exact` it scores 1 for the same items in the same
      order, else 0.
    - An object inside scores the mean over its own fields.
    """

    fields: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="the fields to compare, by name, of the outer object alone; null: all"
    )
    lists: Literal["f1", "exact"] = Field(default="f1", description="what a list scores: its F1, or 1 for the same one")

    def score(self, prediction: str, reference: str) -> float:
        """Return the mean over the fields."""
        wanted = self._chosen(_reference_object(reference))
        try:
            found = self._chosen(parse_object(prediction))
        except ValueError:
            return 0.0
        return self._agreement(found, wanted)

    def check(self, reference: str) -> None:
        """Raise `DataError` where the reference is no JSON object, or has none of the fields."""
        found = _reference_object(reference)
        if not self._chosen(found):
            which = f"none of the fields {', '.join(self.fields)}" if self.fields else "no field"
            raise DataError(f"its reference {shown(reference)} has {which}")

    def _chosen(self, found: dict[str, Any]) -> dict[str, Any]:
        return found if self.fields is None else {name: found[name] for name in self.fields if name in found}

    def _agreement(self, found: Any, wanted: Any) -> float:
        if isinstance(found, dict) and isinstance(wanted, dict):
            names = found.keys() | wanted.keys()
            both = found.keys() & wanted.keys()
            return math.fsum(self._agreement(found[n], wanted[n]) for n in both) / len(names) if names else 1.0
        if isinstance(found, list) and isinstance(wanted, list) and self.lists == "f1":
            shared = Counter(map(_comparable, found)) & Counter(map(_comparable, wanted))
            return 2 * shared.total() / (len(found) + len(wanted)) if found or wanted else 1.0
        return float(_comparable(found) == _comparable(wanted))


_TEXT = ExactMatch()


def _comparable(value: Any) -> Hashable:
    """A JSON value such that two are equal where `FieldAccuracy` calls them the same: true is not 1."""
    if isinstance(value, str):
        return ("text", _TEXT.normalise(value))
    if isinstance(value, list):
        return ("list", tuple(map(_comparable, value)))
    if isinstance(value, dict):
        return ("object", frozenset((name, _comparable(inner)) for name, inner in value.items()))
    return ("flag", value) if isinstance(value, bool) else ("other", value)
