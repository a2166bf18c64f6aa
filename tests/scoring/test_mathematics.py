import importlib.util
import logging

import pytest

from tests.support import literally
from vlmft.config.spec import validate
from vlmft.errors import ConfigError, DataError
from vlmft.scoring import MathCorrectness, MetricSpec


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("42", "42"),
        ("The answer is 42.", "42"),
        ("I first had 41, but it is \\boxed{42}.", "42"),
        ("<think>1/3?</think><answer>1/2</answer>", "0.5"),
        ("0.5", "<think>a half</think>\n\n<answer>\\frac{1}{2}</answer>"),
        ("50%", "1/2"),
        ("3000", "3,000"),
        ("0.333333", "1/3"),
        ("$\\sqrt{8}$", "2\\sqrt{2}"),
        ("2^{10}", "1024"),
        ("1+x", "x+1"),
        ("x=3", "3"),
        ("{2,1}", "\\{1,2\\}"),
    ],
)
def test_same_answer(prediction: str, reference: str) -> None:
    assert MathCorrectness().score(prediction, reference) == 1.0


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("41", "42"),
        ("-42", "42"),
        ("0.33", "1/3"),
        ("2", "2^{10}"),
        ("2", "2\\sqrt{2}"),
        ("y+1", "x+1"),
        ("forty-two", "42"),
        ("", "42"),
        ("<think>42", "42"),
    ],
)
def test_other_answer(prediction: str, reference: str) -> None:
    assert MathCorrectness().score(prediction, reference) == 0.0


def test_an_answer_that_sympy_fails_on_is_quoted_in_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert MathCorrectness().score("\\frac{1}{0}", "1/0") == 0.0
    expected = "scored 0, as sympy fails on the answer '\\\\frac{1}{0}': ValueError: Can't evaluate nan or zoo"
    assert [record.message for record in caplog.records] == [expected]


@pytest.mark.slow
def test_an_answer_that_would_take_for_ever_does_not(caplog: pytest.LogCaptureFixture) -> None:
    assert MathCorrectness().score("9^{9^{9^{9}}}", "5") == 0.0
    assert "'9^{9^{9^{9}}}': TimeoutException: Timeout during comparison" in caplog.text


def test_refuses_references_without_mathematics() -> None:
    expected = "its reference 'red' has no number or formula; expected such as 42, 1/2 or $x+1$"
    with pytest.raises(DataError, match=literally(expected)):
        MathCorrectness().check("red")
    with pytest.raises(DataError, match=literally(expected)):
        MathCorrectness().score("42", "red")
    MathCorrectness().check("x+1")


def test_without_math_verify_it_cannot_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    expected = "needs math-verify, which is not installed: pip install 'vlmft[math]'"
    with pytest.raises(ConfigError, match=literally(expected)):
        validate(MetricSpec, {"_target_": "vlmft.scoring.MathCorrectness"})


def test_is_right_or_wrong() -> None:
    assert MathCorrectness.is_binary
