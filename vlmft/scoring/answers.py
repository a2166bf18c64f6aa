"""Where a text states its answer: reasoning and answer in tags, or the answer alone."""

import re
from typing import ClassVar

from pydantic import Field, field_validator

from vlmft.errors import DataError
from vlmft.scoring.base import MetricSpec, shown
from vlmft.scoring.text import ExactMatch

_FORMAT = re.compile(r"\s*<think>(?P<think>.+?)</think>\s*<answer>(?P<answer>.+?)</answer>\s*", re.DOTALL)
_TAG = re.compile(r"</?(?:think|answer)>")
_MARKS = r"(?:\\boxed|[\s$*_`'\"()\[\]{}:])*"  # what may stand before a letter
_AFTER = r"[\s$*_`'\"()\[\]{}.,:]*"
_SAYS = (
    rf"\b(?i:answer|correct option|correct choice)\b{_MARKS}"
    rf"(?i:(?:is|would be)\b{_MARKS})?(?i:(?:option|choice)\b{_MARKS})?\b"
)


def answer_of(text: str) -> str:
    """Return what a text states as its answer, without spaces around it.

    That is what stands in its last `<answer>...</answer>`, an unclosed one reaching to the end; without one, what
    follows its last `</think>`, and nothing where a `<think>` is not closed; else the whole text.
    """
    _, opened, rest = text.rpartition("<answer>")
    if opened:
        return rest.partition("</answer>")[0].strip()
    _, closed, rest = text.rpartition("</think>")
    if closed:
        return rest.strip()
    return "" if "<think>" in text else text.strip()


class Format(MetricSpec):
    """1 where the text is `<think>...</think><answer>...</answer>`, else 0. The reference does not matter.

    Each of the four tags stands there once and in this order, with something inside each pair, and nothing but
    whitespace between the pairs and around them.
    """

    is_binary: ClassVar[bool] = True

    def score(self, prediction: str, reference: str) -> float:
        """Return 1.0 where `prediction` has the form, else 0.0."""
        match = _FORMAT.fullmatch(prediction)
        return float(match is not None and all(map(_is_plain, match.groups())))


def _is_plain(text: str) -> bool:
    return bool(text.strip()) and not _TAG.search(text)


class Correctness(ExactMatch):
    """1 where prediction and reference state the same answer, else 0, with tags or without.

    The answer of each is what stands in its last `<answer>...</answer>`, an unclosed one reaching to the end; without
    one, what follows its last `</think>`; else the whole text. Reasoning that does not end states none. The two
    answers are compared as `exact_match` compares texts, with its settings.
    """

    def score(self, prediction: str, reference: str) -> float:
        """Return 1.0 for the same answer, else 0.0."""
        return super().score(answer_of(prediction), answer_of(reference))

    def check(self, reference: str) -> None:
        """Raise `DataError` where the reference states no answer."""
        if not answer_of(reference):
            raise DataError(f"its reference {shown(reference)} states no answer; expected text in <answer>...</answer>")


class Choice(MetricSpec):
    r"""1 where prediction and reference state the same letter of a multiple choice, else 0.

    The letter is looked for in the answer (as `correctness` finds it, with tags or without), the first of these:

    1. The answer is a letter, with marks around it or none: `B`, `b.`, `(B)`, `**B**`, `\boxed{B}`.
    2. It says so, the last time it does, with a capital letter: `the answer is B`, `Answer: (B)`, `the correct option
       is **B**`.
    3. It begins with a letter and a mark: `B. a red bus`, `(b) a red bus`, `B: a red bus`.

    An answer that states none of `letters` has no letter, and scores 0: a letter elsewhere (`A red bus`) is a word.
    """

    is_binary: ClassVar[bool] = True

    letters: str = Field(default="ABCDEFGH", min_length=2, max_length=26, description="that may be chosen, as capitals")

    @field_validator("letters")
    @classmethod
    def _are_letters(cls, letters: str) -> str:
        if not re.fullmatch("[A-Z]+", letters) or len(set(letters)) < len(letters):
            raise ValueError("should be capital letters, each once, such as ABCD")
        return letters

    def score(self, prediction: str, reference: str) -> float:
        """Return 1.0 for the same letter, else 0.0."""
        self.check(reference)
        return float(self.letter(prediction) == self.letter(reference))

    def check(self, reference: str) -> None:
        """Raise `DataError` where the reference states none of the letters."""
        if self.letter(reference) is None:
            raise DataError(
                f"its reference {shown(reference)} states none of the letters {self.letters}; expected one such as B, "
                "(B) or <answer>B</answer> (`letters` says which there are)"
            )

    def letter(self, text: str) -> str | None:
        """Return the letter that `text` states, as a capital; None where it states none."""
        answer = answer_of(text)
        letter = f"[{self.letters}{self.letters.lower()}]"
        if whole := re.fullmatch(f"{_MARKS}({letter}){_AFTER}", answer):
            return whole[1].upper()
        if said := re.findall(rf"{_SAYS}([{self.letters}])(?![\w-]|['’]\w)", answer):
            return str(said[-1])
        begins = re.match(rf"[*(\[]*({letter})\**[.):\]]", answer)
        return begins[1].upper() if begins else None
