import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlmft.config.spec import Spec, validate
from vlmft.errors import ConfigError
from vlmft.scoring import ExactMatch, Length, MetricSpec


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("red", "red"),
        ("Red.", "red"),
        ("  dark \t\n red ", "dark red"),
        ('"Red"', "red"),
        ("“red” .", "red"),
        ("(A)", "a"),
        ("`x`", "x"),
        ("\uff34\uff25\uff33\uff34\uff01", "test"),  # full-width TEST!
        ("\ufb01ve", "five"),  # ligature fi
        ("a\u00a0b", "a b"),
        ("Straße", "STRASSE"),
        ("Ångström", "A\u030angstro\u0308m"),
        ("¿Qué?", "qué"),
        ("赤。", "赤"),
        ("yes!!! ... ", "yes"),
    ],
)
def test_same_text(prediction: str, reference: str) -> None:
    assert ExactMatch().score(prediction, reference) == 1.0
    assert ExactMatch().score(reference, prediction) == 1.0


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("red", "green"),
        ("", "red"),
        ("...", ""),
        ("?", "!"),
        ("-5", "5"),
        (".5", "5"),
        ("5%", "5"),
        ("$5", "5"),
        ("C#", "C"),
        ("3.14", "314"),
        ("it's", "its"),
        ("dark red", "darkred"),
        ("the red one", "red"),
    ],
)
def test_other_text(prediction: str, reference: str) -> None:
    assert ExactMatch().score(prediction, reference) == 0.0
    assert ExactMatch().score(reference, prediction) == 0.0


def test_switches() -> None:
    assert ExactMatch(ignore_case=False).score("Red", "red") == 0.0
    assert ExactMatch(ignore_case=False).score("Red.", "Red") == 1.0
    assert ExactMatch(ignore_punctuation=False).score("red.", "red") == 0.0
    assert ExactMatch(ignore_punctuation=False).score(" RED ", "red") == 1.0


@pytest.mark.parametrize("text", ["", "?", ' " Yes . " ', "ǰ", "\u1e9e", "ΐ", "İstanbul!", "«(a)»", "...a..."])
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = ExactMatch().normalise(text)
    assert ExactMatch().normalise(once) == once


def test_is_binary() -> None:
    assert ExactMatch.is_binary
    assert not MetricSpec.is_binary


class Chosen(Spec):
    metric: MetricSpec


def test_entry_of_the_registry() -> None:
    entries = yaml.safe_load((Path(__file__).parents[2] / "registry/metrics/text.yaml").read_text())
    choice = validate(Chosen, {"metric": {**entries["exact_match"], "ignore_case": False}})
    assert choice.metric == ExactMatch(ignore_case=False)
    with pytest.raises(ConfigError, match=r"metric.ignore_cases: unknown key; did you mean ignore_case\?"):
        validate(Chosen, {"metric": {**entries["exact_match"], "ignore_cases": False}})


def test_imports_no_torch() -> None:
    code = "import sys, vlmft.scoring; print(sorted({'torch', 'transformers', 'PIL', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("settings", "text", "score"),
    [
        ({}, "", 0.0),
        ({}, "red", 1.0),
        ({}, " ".join(["red"] * 100), 1.0),
        ({}, " ".join(["red"] * 200), 0.5),
        ({"least": 4}, "one  two\nthree", 0.75),
        ({"least": 2, "most": None}, "red " * 10_000, 1.0),
        ({"unit": "characters", "least": 3, "most": 5}, " four ", 1.0),
        ({"unit": "characters", "least": 8, "most": 9}, "four", 0.5),
        ({"unit": "characters", "least": 0, "most": 5}, "exactly 10", 0.5),
    ],
)
def test_length(settings: dict[str, Any], text: str, score: float) -> None:
    assert Length(**settings).score(text, "") == score
    assert not Length.is_binary


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"least": 5, "most": 4}, "metric: most=4 is less than least=5; change one of the two"),
        ({"least": 0, "most": None}, "metric: least=0 and most=null let every length through; give one of them"),
        ({"unit": "tokens"}, "metric.unit: Input should be 'words' or 'characters' (found 'tokens')"),
    ],
)
def test_a_length_that_cannot_be_is_refused(settings: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(error)):
        validate(Chosen, {"metric": {"_target_": "vlmft.scoring.Length", **settings}})
