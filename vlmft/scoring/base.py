"""What every metric answers to, and how one is asked: by name, for a sample."""

import math
import traceback
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar

from vlmft.config.spec import Spec
from vlmft.errors import DataError, ScoringError

_LISTED = 5  # references of a metric that a message names: mostly all are wrong, as the metric does not fit the data


class MetricSpec(Spec, abstract=True):
    """How a generated answer is compared with the reference answer."""

    is_binary: ClassVar[bool] = False
    """Whether every score is 0 or 1, so that statistics for right and wrong answers apply."""
    is_bounded: ClassVar[bool] = True
    """Whether every score is in [0, 1]; of a metric it is."""

    @abstractmethod
    def score(self, prediction: str, reference: str) -> float:
        """Return how good `prediction` is, from 0 (worthless) to 1 (perfect).

        An answer that is bad, in whatever way, has a score. What is raised says that no score can be given.

        Raises:
            DataError: as `check`.
        """

    def check(self, reference: str) -> None:
        """Do nothing where answers can be compared with `reference`.

        Raises:
            DataError: they cannot: says what was found and what was expected.
        """


def named_score(
    name: str, metric: MetricSpec, sample_id: str, prediction: str, reference: str, word: str = "metric"
) -> float:
    """Return the score of a sample's answer by the metric chosen as `name`; `word` is what a message calls it.

    Raises:
        DataError: the sample's reference cannot be used.
        ScoringError: the metric raised something else, or gave no number in [0, 1]. Both name metric and sample.
    """
    where = f"{word} {name}, sample {sample_id}"
    answer = f"the answer was {shown(prediction)}"
    try:
        score = float(metric.score(prediction, reference))
    except DataError as error:
        raise DataError(*(f"{where}: {problem}" for problem in error.problems)) from None
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error} ({at.filename}:{at.lineno})"
        raise ScoringError(f"{where}: {what}; {answer}, the reference {shown(reference)}") from error
    if not (math.isfinite(score) and 0 <= score <= 1):
        raise ScoringError(f"{where}: a score should be in [0, 1]; found {score}; {answer}")
    return score


def check_references(
    metrics: Mapping[str, MetricSpec], references: Iterable[tuple[str, str]], word: str = "metric"
) -> None:
    """Look at all references, (sample id, text) each, before any model answers; `word` as in `named_score`.

    Raises:
        DataError: lists the references that a metric cannot use, with the metric's name and the sample's id; of each
            metric the first few, and how many there are beside.
    """
    problems = []
    references = list(references)
    for name, metric in metrics.items():
        refused = 0
        for sample_id, reference in references:
            try:
                metric.check(reference)
            except DataError as error:
                refused += 1
                if refused <= _LISTED:
                    problems += [f"{word} {name}, sample {sample_id}: {problem}" for problem in error.problems]
        if refused > _LISTED:
            problems.append(f"{word} {name}: so with {refused - _LISTED} more of {len(references)} samples")
    DataError.raise_if(problems)


def shown(text: str) -> str:
    """A text of any length as a message quotes it: a long one by its start and its end, where an answer often is."""
    return repr(text if len(text) <= 300 else f"{text[:100]} ... {text[-200:]}")
