"""Answers that are mathematics: numbers, formulas, sets, equations."""

import importlib.util
import logging
import re
from typing import Any, ClassVar, Self

from pydantic import model_validator

from vlmft.errors import DataError
from vlmft.scoring.answers import answer_of
from vlmft.scoring.base import MetricSpec, shown

_logger = logging.getLogger(__name__)

_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile("[A-Za-z]{2}")
_FORMULA = re.compile(r"[\\^_=+*/()\[{A-Za-z]")
_DELIMITED = re.compile(r"\$|\\\(|\\\[|\\boxed|\\begin")


class MathCorrectness(MetricSpec):
    r"""1 where prediction and reference state the same mathematical answer, else 0: 1/2 is 0.5 and \frac{1}{2}.

    The answer (as `correctness` finds it, with tags or without) is read and compared by math-verify, with its own
    settings: LaTeX between dollar signs or in `\boxed{}`, the last one first; then numbers and fractions, 12% and
    3,000 among them. An answer without words, such as `2\sqrt{2}`, is a formula as a whole. Numbers are the same to six
    decimals, and 50% is 50 as well as 0.5.

    An answer in which nothing is found scores 0; so does one that sympy fails on, or works on for more than five
    seconds, with a warning that quotes it. Needs `pip install 'vlmft[math]'`.
    """

    is_binary: ClassVar[bool] = True

    @model_validator(mode="after")
    def _can_work(self) -> Self:
        if importlib.util.find_spec("math_verify") is None:
            raise ValueError("needs math-verify, which is not installed: pip install 'vlmft[math]'")
        return self

    def score(self, prediction: str, reference: str) -> float:
        """Return 1.0 for the same answer, else 0.0."""
        from math_verify import verify
        from math_verify.errors import TimeoutException

        wanted = _reference(reference)
        try:
            return float(verify(wanted, _parsed(prediction), raise_on_error=True))
        except (Exception, TimeoutException) as error:
            problem = f"{type(error).__name__}: {error}"
            _logger.warning("scored 0, as sympy fails on the answer %s: %s", shown(prediction), problem)
            return 0.0

    def check(self, reference: str) -> None:
        """Raise `DataError` where nothing is found in the reference."""
        _reference(reference)


def _reference(reference: str) -> list[Any]:
    found = _parsed(reference)
    if not found:
        raise DataError(f"its reference {shown(reference)} has no number or formula; expected such as 42, 1/2 or $x+1$")
    return found


def _parsed(text: str) -> list[Any]:
    """What math-verify reads as the answer of a text; empty where it finds none."""
    from math_verify import parse

    answer = answer_of(text)
    is_whole = not _WORD.search(_COMMAND.sub("", answer)) and not _DELIMITED.search(answer)
    if is_whole and _FORMULA.search(answer):
        answer = f"${answer}$"
    found: list[Any] = parse(answer, fallback_mode="no_fallback", raise_on_error=True)
    return found
