"""Metrics that compare two strings."""

import unicodedata
from typing import ClassVar

from pydantic import Field

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
