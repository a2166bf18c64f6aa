import math
import re

import pytest

from tests.support import literally
from vlmft.errors import DataError, ScoringError
from vlmft.scoring import ExactMatch, MetricSpec, check_references, named_score


class Ratio(MetricSpec):
    """How many of ten."""

    def score(self, prediction: str, reference: str) -> float:
        return float(prediction) / float(reference)

    def check(self, reference: str) -> None:
        if not reference.isdigit():
            raise DataError(f"its reference {reference!r} is no number; expected digits")


def test_a_score_is_the_metrics() -> None:
    assert named_score("ratio", Ratio(), "mine/1", "3", "4") == 0.75
    assert named_score("exact", ExactMatch(), "mine/1", "Red.", "red") == 1.0


def test_what_a_metric_raises_names_it_the_sample_and_the_answer() -> None:
    expected = (
        r"^metric ratio, sample mine/1: ZeroDivisionError: float division by zero \(.*test_base\.py:\d+\); "
        r"the answer was '3', the reference '0'$"
    )
    with pytest.raises(ScoringError, match=expected) as caught:
        named_score("ratio", Ratio(), "mine/1", "3", "0")
    assert caught.value.exit_code == 1
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_long_answer_is_shown_by_its_ends() -> None:
    with pytest.raises(ScoringError) as caught:
        named_score("ratio", Ratio(), "mine/1", "a" * 200 + "b" * 200, "4")
    shown = re.search(r"the answer was '(.*?)'", str(caught.value))
    assert shown is not None and shown[1] == "a" * 100 + " ... " + "b" * 200


def test_a_message_uses_the_word_for_what_scores() -> None:
    with pytest.raises(ScoringError, match="^reward ratio, sample mine/1: ZeroDivisionError"):
        named_score("ratio", Ratio(), "mine/1", "3", "0", word="reward")
    with pytest.raises(DataError, match="^reward ratio, sample mine/2: its reference 'four' is no number"):
        check_references({"ratio": Ratio()}, [("mine/2", "four")], word="reward")


@pytest.mark.parametrize(("prediction", "found"), [("5", "1.25"), ("-1", "-0.25"), ("nan", "nan")])
def test_what_is_no_share_is_refused(prediction: str, found: str) -> None:
    expected = f"metric ratio, sample mine/1: a score should be in [0, 1]; found {found}; the answer was '{prediction}'"
    with pytest.raises(ScoringError, match=literally(expected)):
        named_score("ratio", Ratio(), "mine/1", prediction, "4")
    assert not math.isnan(named_score("ratio", Ratio(), "mine/1", "4", "4"))


def test_references_that_cannot_be_used_are_listed() -> None:
    metrics = {"exact": ExactMatch(), "ratio": Ratio()}
    with pytest.raises(DataError) as caught:
        check_references(metrics, [("mine/1", "4"), ("mine/2", "four"), ("mine/3", "")])
    assert caught.value.problems == (
        "metric ratio, sample mine/2: its reference 'four' is no number; expected digits",
        "metric ratio, sample mine/3: its reference '' is no number; expected digits",
    )
    check_references(metrics, [("mine/1", "4")])


def test_of_many_references_a_few_are_listed() -> None:
    with pytest.raises(DataError) as caught:
        check_references({"ratio": Ratio()}, [(f"mine/{i}", "x" * (i % 8 != 0) or "4") for i in range(16)])
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == [
        *(f"metric ratio, sample mine/{i}" for i in range(1, 6)),
        "metric ratio",
    ]
    assert caught.value.problems[-1] == "metric ratio: so with 9 more of 16 samples"


class Refusing(MetricSpec):
    """Scores nothing."""

    def score(self, prediction: str, reference: str) -> float:
        raise DataError(f"its reference {reference!r} is no number")


def test_a_reference_found_late_is_named_as_well() -> None:
    with pytest.raises(DataError, match=r"^metric r, sample mine/1: its reference 'x' is no number$"):
        named_score("r", Refusing(), "mine/1", "3", "x")
