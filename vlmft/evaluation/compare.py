"""Two models on the same samples: the difference of their scores, and how sure it is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlmft.evaluation.answers import Answer
from vlmft.evaluation.statistics import (
    Interval,
    mcnemar_exact,
    mean_interval,
    paired_permutation,
    proportion,
    unbounded_mean_interval,
)

if TYPE_CHECKING:
    from vlmft.evaluation.judge import Measure


@dataclass(frozen=True)
class Comparison:
    """One metric of the base and the tuned model on the same held-out samples."""

    metric: str
    n: int
    tuned: Interval
    base: Interval | None
    test: str
    """Of the difference, two-sided: McNemar (exact) where every score is right or wrong, else permutation (paired)."""
    p_value: float | None
    """None without a base."""


def compare(
    base: "Sequence[Answer] | None", tuned: "Sequence[Answer]", measures: "Mapping[str, Measure]"
) -> list[Comparison]:
    """Compare the answers of two models to the same samples, score by score."""
    comparisons = []
    for metric, spec in measures.items():
        scores = [answer.scores[metric] for answer in tuned]
        before = [answer.scores[metric] for answer in base] if base else None
        interval, (test, p_of) = _ways(spec)
        comparisons.append(
            Comparison(
                metric=metric,
                n=len(scores),
                tuned=interval(scores),
                base=interval(before) if before else None,
                test=test,
                p_value=p_of(before, scores) if before else None,
            )
        )
    return comparisons


def _ways(measure: "Measure") -> tuple[Callable[[Sequence[float]], Interval], tuple[str, Callable[..., float]]]:
    """Interval, and test with its name."""
    if measure.is_binary:
        return _accuracy, _MCNEMAR
    return mean_interval if measure.is_bounded else unbounded_mean_interval, _PERMUTATION


def _accuracy(scores: Sequence[float]) -> Interval:
    return proportion(round(sum(scores)), len(scores))


def _mcnemar(base: Sequence[float], tuned: Sequence[float]) -> float:
    return mcnemar_exact([score == 1 for score in base], [score == 1 for score in tuned])


_MCNEMAR = ("McNemar", _mcnemar)
_PERMUTATION = ("permutation", paired_permutation)
