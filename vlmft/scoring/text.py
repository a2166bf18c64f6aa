"""Metrics on a text as it stands."""

import unicodedata
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from vlmft.scoring.base import MetricSpec

QUOTES = "'\"`´‘’‚‛“”„‟«»‹›「」『』"
LEADING = QUOTES + "([{<¿¡"
TRAILING = QUOTES + ")]}>.,;:!?。、"


class ExactMatch(MetricSpec):
    """1 where prediction and reference are the same text after normalisation, else 0.

    Both are normalised alike, in this order:

    1. Unicode NFKC: full-width forms, ligatures and no-break spaces become their plain counterparts.
    2. `ignore_case`: case folding (ß equals ss), then NFKC again.
    3. Every run of whitespace becomes one space; none is left at the ends.
    4. `ignore_punctuation`: quotes, opening brackets, ¿ and ¡ are taken from the start; quotes, closing
       brackets and . , ; : ! ? and their CJK forms from the end, however many, with the spaces between.
       Punctuation inside a text stays, and so does what carries meaning at an end, such as -5, .5, 5%,
       $5 and C#. A text of nothing but such marks is left as it is: "?" is not "!".
    """

    is_binary: ClassVar[bool] = True

    ignore_case: bool = Field(default=True, description="step 2: RED is red")
    ignore_punctuation: bool = Field(default=True, description="step 4: Red. is red")

    def score(self, prediction: str, reference: str) -> float:
        """Return 1.0 for the same text after normalisation, else 0.0."""
        return float(self.normalise(prediction) == self.normalise(reference))

    def normalise(self, text: str) -> str:
        """Return what is compared."""
        text = unicodedata.normalize("NFKC", text)
        if self.ignore_case:
            text = unicodedata.normalize("NFKC", text.casefold())
        text = " ".join(text.split())
        if self.ignore_punctuation:
            text = text.lstrip(LEADING + " ").rstrip(TRAILING + " ") or text
        return text


class Length(MetricSpec):
    """1 where the whole text, reasoning and all, is from `least` to `most` long, else less. No reference is needed.

    Below `least` it is the share of `least` that is there, above `most` the share that `most` is of the length: with
    `most` 100, a text of 200 words scores 0.5. A word is what stands between whitespace.
    """

    unit: Literal["words", "characters"] = Field(default="words", description="what is counted: words or characters")
    least: int = Field(default=1, ge=0, description="from this length on the score is 1")
    most: int | None = Field(default=100, ge=1, description="up to this length the score is 1; null: however long")

    @model_validator(mode="after")
    def _can_be_missed(self) -> Self:
        if self.most is None and self.least == 0:
            raise ValueError("least=0 and most=null let every length through; give one of them")
        if self.most is not None and self.most < self.least:
            raise ValueError(f"most={self.most} is less than least={self.least}; change one of the two")
        return self

    def score(self, prediction: str, reference: str) -> float:
        """Return 1.0 within the bounds, else the share described above."""
        length = len(prediction.split()) if self.unit == "words" else len(prediction.strip())
        if length < self.least:
            return length / self.least
        return self.most / length if self.most is not None and length > self.most else 1.0
