import math
import subprocess
import sys

import pytest

from vlmft.evaluation.statistics import Interval, mcnemar_exact, mean_interval, paired_permutation, proportion

Z = 1.959963984540054  # the normal distribution's 97.5 % quantile


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (81, 263), (119, 120)])
def test_wilson_by_its_formula(successes: int, n: int) -> None:
    share = successes / n
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    found = proportion(successes, n)
    assert found.value == share
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_wilson_by_a_published_value() -> None:
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3 (score without continuity correction).
    found = proportion(81, 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    found = proportion(0, 20)
    assert (round(found.low, 4), round(found.high, 4)) == (0.0, 0.1611)


def test_proportion_refuses() -> None:
    with pytest.raises(ValueError, match="at least one answer; found n=0"):
        proportion(0, 0)
    for successes in (-1, 4):
        with pytest.raises(ValueError, match=rf"successes should be in 0..3; found {successes}"):
            proportion(successes, 3)


def test_mean_interval_by_hand() -> None:
    # Mean 0.5, sample deviation sqrt(0.05 / 3), t quantile for 3 degrees of freedom 3.182446 (any table).
    half = 3.182446 * math.sqrt(0.2 / 3) / 2
    found = mean_interval([0.2, 0.4, 0.6, 0.8])
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half), abs=1e-6)


def test_mean_interval_at_its_edges() -> None:
    assert mean_interval([0.25]) == Interval(0.25, 0.0, 1.0)
    assert mean_interval([1.0, 1.0, 1.0]) == Interval(1.0, 1.0, 1.0)
    assert mean_interval([0.0, 1.0]) == Interval(0.5, 0.0, 1.0)
    with pytest.raises(ValueError, match="at least one score"):
        mean_interval([])
    for score in (1.5, -0.1, math.nan):
        with pytest.raises(ValueError, match=rf"should be in \[0, 1\]; found {score}"):
            mean_interval([0.5, score])


def answers(both: int, base_only: int, tuned_only: int, neither: int) -> tuple[list[bool], list[bool]]:
    pairs = [(True, True)] * both + [(True, False)] * base_only + [(False, True)] * tuned_only
    pairs += [(False, False)] * neither
    return [base for base, _ in pairs], [tuned for _, tuned in pairs]


@pytest.mark.parametrize(
    ("base_only", "tuned_only", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (0, 5, 2 / 32),
        (1, 5, 2 * (1 + 6) / 64),
        (3, 3, 1.0),
        (0, 60, 2 / 2**60),
        (5, 1, 2 * (1 + 6) / 64),
    ],
)
def test_mcnemar_by_hand(base_only: int, tuned_only: int, p: float) -> None:
    assert mcnemar_exact(*answers(7, base_only, tuned_only, 2)) == pytest.approx(p, rel=1e-9)


def test_mcnemar_by_the_binomial_sum() -> None:
    # 59 and 6 discordant pairs: twice the lower tail.
    p = 2 * sum(math.comb(65, k) for k in range(7)) / 2**65
    assert mcnemar_exact(*answers(4, 6, 59, 16)) == pytest.approx(p, rel=1e-9)


def test_mcnemar_refuses() -> None:
    with pytest.raises(ValueError, match="found 2 and 1 answers"):
        mcnemar_exact([True, False], [True])
    with pytest.raises(ValueError, match="at least one answer"):
        mcnemar_exact([], [])


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([0.0, 0.0], 1.0),
        ([0.5], 1.0),
        ([0.3, 0.0, 0.1], 2 / 4),  # of 4 sign patterns one is as far out
        ([0.1, 0.2, 0.4], 2 / 8),
        ([0.1, 0.2, -0.4], 2 * 4 / 8),  # sums: 7 5 3 1 -1 -3 -5 -7; 4 are at most -1
        ([0.1, -0.2, 0.4], 2 * 3 / 8),  # sums of at least 3: 3, 5, 7
        ([0.25] * 10, 2 / 1024),
        ([0.25] * 9 + [-0.25], 2 * 11 / 1024),
    ],
)
def test_permutation_by_hand(differences: list[float], p: float) -> None:
    base = [0.5] * len(differences)
    tuned = [0.5 + difference for difference in differences]
    assert paired_permutation(base, tuned) == pytest.approx(p, rel=1e-9)
    assert paired_permutation(tuned, base) == pytest.approx(p, rel=1e-9)


def test_permutation_on_right_and_wrong_is_mcnemar() -> None:
    base, tuned = answers(7, 2, 9, 3)
    expected = mcnemar_exact(base, tuned)
    assert paired_permutation([float(s) for s in base], [float(s) for s in tuned]) == pytest.approx(expected, rel=1e-9)


def test_permutation_of_many_is_drawn_and_the_same_each_time() -> None:
    """39 pairs differ, by the same size, 26 of them upwards: the exact test is that of a coin."""
    differences = [0.1 if i % 3 else -0.1 for i in range(39)] + [0.0] * 5
    base, tuned = [0.5] * len(differences), [0.5 + difference for difference in differences]
    p = paired_permutation(base, tuned)
    exact = 2 * sum(math.comb(39, k) for k in range(14)) / 2**39
    assert p == pytest.approx(exact, abs=0.01) and exact == pytest.approx(0.0533, abs=1e-4)
    assert paired_permutation(base, tuned) == p
    assert paired_permutation([0.0] * 500, [0.3] * 500) == 2 / 10_000


def test_permutation_refuses() -> None:
    with pytest.raises(ValueError, match="found 2 and 1 answers"):
        paired_permutation([0.1, 0.2], [0.3])
    with pytest.raises(ValueError, match="at least one answer"):
        paired_permutation([], [])


def test_importing_the_module_imports_no_scipy() -> None:
    code = "import sys, vlmft.evaluation.statistics; print('scipy' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"
