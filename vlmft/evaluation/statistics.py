"""How sure a figure is: intervals around a score, and whether two models differ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CONFIDENCE = 0.95
RESAMPLES = 9999
"""Of a permutation test that cannot try all: the least p-value that it finds is 2 / (RESAMPLES + 1)."""


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % confidence interval."""

    value: float
    low: float
    high: float


def proportion(successes: int, n: int) -> Interval:
    """Return the share of `successes` among `n` answers, with its Wilson score interval.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22
    (1927). Unlike the normal approximation it keeps to [0, 1] and its width is not 0 at 0 or n successes.

    Raises:
        ValueError: n is 0, or `successes` is not in 0..n.
    """
    from scipy.stats import binomtest

    if n < 1:
        raise ValueError(f"a share needs at least one answer; found n={n}")
    if not 0 <= successes <= n:
        raise ValueError(f"successes should be in 0..{n}; found {successes}")
    interval = binomtest(successes, n).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return Interval(successes / n, float(interval.low), float(interval.high))


def mean_interval(scores: Sequence[float]) -> Interval:
    """Return the mean of `scores`, each in [0, 1], with Student's t interval cut to [0, 1].

    For scores that are not only 0 or 1; for those `proportion` is better. Chosen over the bootstrap
    because it needs no seed, and because a percentile bootstrap is too narrow for small samples. One
    score says nothing about the spread, so its interval is all of [0, 1]; equal scores give width 0.

    Raises:
        ValueError: there is no score, or one outside [0, 1].
    """
    outside = [score for score in scores if not 0 <= score <= 1]
    if outside:
        raise ValueError(f"scores should be in [0, 1]; found {outside[0]}")
    if len(scores) == 1:
        return Interval(scores[0], 0.0, 1.0)
    found = unbounded_mean_interval(scores)
    return Interval(found.value, max(0.0, found.low), min(1.0, found.high))


def unbounded_mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean of `values` with Student's t interval; of a single one it is all numbers.

    Raises:
        ValueError: there is no value.
    """
    from scipy.stats import t

    n = len(values)
    if n < 1:
        raise ValueError("a mean needs at least one score; found none")
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, -math.inf, math.inf)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def mcnemar_exact(base: Sequence[bool], tuned: Sequence[bool]) -> float:
    """Return the two-sided p-value of McNemar's exact test on paired right/wrong answers.

    `base[i]` and `tuned[i]` answer the same sample. Only samples that one model gets right and the other
    wrong count: were the models equally good, each would win such a sample with probability 1/2. Where
    there is none, p is 1.

    Source: Q. McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", Psychometrika 12 (1947), in its exact binomial form.

    Raises:
        ValueError: there is no answer, or the two have different lengths.
    """
    from scipy.stats import binomtest

    _refuse_unpaired(base, tuned)
    base_only = sum(1 for was, now in zip(base, tuned, strict=True) if was and not now)
    tuned_only = sum(1 for was, now in zip(base, tuned, strict=True) if now and not was)
    if base_only + tuned_only == 0:
        return 1.0
    return float(binomtest(base_only, base_only + tuned_only, 0.5).pvalue)


def paired_permutation(base: Sequence[float], tuned: Sequence[float]) -> float:
    """Return the two-sided p-value of the permutation test on the mean difference of paired scores.

    `base[i]` and `tuned[i]` score the same sample. Were the models equally good, each pair might as well stand the
    other way round: p is twice the share of such exchanges whose mean difference is at least as far out to the side of
    the one that was found, 1 at most. All are tried where that is up to `RESAMPLES`; else so many are drawn, always
    the same, and the one found counts among them. Pairs of equal scores change nothing and are left out; where all are
    equal, p is 1. For right and wrong answers `mcnemar_exact` is this test, exact for any number of them.

    Source: R. A. Fisher, "The Design of Experiments" (1935), section 21; scipy.stats.permutation_test.

    Raises:
        ValueError: there is no score, or the two have different lengths.
    """
    from scipy.stats import permutation_test

    _refuse_unpaired(base, tuned)
    pairs = [(was, now) for was, now in zip(base, tuned, strict=True) if was != now]
    if len(pairs) < 2:  # a single one is as far out either way round
        return 1.0
    test = permutation_test(
        ([now for _, now in pairs], [was for was, _ in pairs]),
        _mean_difference,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, 1_000_000 // len(pairs)),  # 16 MB at once
        rng=0,
    )
    return float(test.pvalue)


def _mean_difference(tuned: Any, base: Any, axis: int) -> Any:
    return (tuned - base).mean(axis=axis)


def _refuse_unpaired(base: Sequence[float], tuned: Sequence[float]) -> None:
    if len(base) != len(tuned):
        raise ValueError(f"both models should answer the same samples; found {len(base)} and {len(tuned)} answers")
    if not base:
        raise ValueError("the test needs at least one answer of each model; found none")
