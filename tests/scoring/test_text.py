import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vlmft.config.spec import Spec, validate
from vlmft.errors import ConfigError
from vlmft.scoring import ExactMatch, MetricSpec


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


class Choice(Spec):
    metric: MetricSpec


def test_entry_of_the_registry() -> None:
    entries = yaml.safe_load((Path(__file__).parents[2] / "registry/metrics/text.yaml").read_text())
    choice = validate(Choice, {"metric": {**entries["exact_match"], "ignore_case": False}})
    assert choice.metric == ExactMatch(ignore_case=False)
    with pytest.raises(ConfigError, match=r"metric.ignore_cases: unknown key; did you mean ignore_case\?"):
        validate(Choice, {"metric": {**entries["exact_match"], "ignore_cases": False}})


def test_imports_no_torch() -> None:
    code = "import sys, vlmft.scoring; print(sorted({'torch', 'transformers', 'PIL', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
