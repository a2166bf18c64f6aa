import time

import pytest

from tests.support import literally
from vlmft.config.spec import validate
from vlmft.errors import ConfigError, DataError
from vlmft.scoring import Choice, Correctness, Format, MetricSpec
from vlmft.scoring.answers import answer_of

# As Qwen2-VL-Finetune's GRPO rows have it: reasoning that names other letters, an empty line, a letter.
REASONED = (
    "<think>The triangle with the corners A, B and C has its right angle at B. Of the angle at A, the side BC is the "
    "opposite one and AB the adjacent one, so the tangent gives it.</think>\n\n<answer>A</answer>"
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" red\n", "red"),
        (REASONED, "A"),
        ("<think>red?</think> blue ", "blue"),
        ("<think>red?</think><answer> blue </answer> done", "blue"),
        ("<answer>red</answer> no: <answer>blue</answer>", "blue"),
        ("<answer>blue", "blue"),
        ("<think>is it red? is it", ""),
        ("<answer></answer>", ""),
    ],
)
def test_the_answer_of_a_text(text: str, answer: str) -> None:
    assert answer_of(text) == answer


class TestFormat:
    @pytest.mark.parametrize(
        "text",
        [REASONED, "<think>a</think><answer>b</answer>", " \n<think>\na\nb\n</think> <answer>\nb\n</answer>\n "],
    )
    def test_has_the_form(self, text: str) -> None:
        assert Format().score(text, "") == 1.0

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "red",
            "<answer>red</answer>",
            "<think>a</think>red",
            "<think> </think><answer>b</answer>",
            "<think>a</think><answer>\n</answer>",
            "<think>a</think> so <answer>b</answer>",
            "Well. <think>a</think><answer>b</answer>",
            "<think>a</think><answer>b</answer>.",
            "<answer>b</answer><think>a</think>",
            "<think>a</think><answer>b",
            "<think>a<answer>b</answer></think><answer>b</answer>",
            "<think>a</think><think>a</think><answer>b</answer>",
            "<think>a</think><answer>b</answer><answer>b</answer>",
            "<THINK>a</THINK><ANSWER>b</ANSWER>",
        ],
    )
    def test_has_it_not(self, text: str) -> None:
        assert Format().score(text, REASONED) == 0.0


class TestCorrectness:
    @pytest.mark.parametrize(
        ("prediction", "reference", "score"),
        [
            (REASONED, "A", 1.0),
            ("a.", REASONED, 1.0),
            ("<think>Red or blue?</think><answer>Red.</answer>", "red", 1.0),
            ("<think>Red or blue?</think><answer>blue</answer>", "red", 0.0),
            ("<think>red", "red", 0.0),
            ("the red one", "red", 0.0),
        ],
    )
    def test_compares_answers(self, prediction: str, reference: str, score: float) -> None:
        assert Correctness().score(prediction, reference) == score

    def test_takes_the_settings_of_exact_match(self) -> None:
        assert Correctness(ignore_case=False).score("<answer>Red</answer>", "red") == 0.0
        assert Correctness(ignore_punctuation=False).score("<answer>red.</answer>", "red") == 0.0

    def test_refuses_a_reference_without_an_answer(self) -> None:
        expected = "its reference '<think>red</think>' states no answer; expected text in <answer>...</answer>"
        with pytest.raises(DataError, match=literally(expected)):
            Correctness().check("<think>red</think>")
        Correctness().check("red")


class TestChoice:
    @pytest.mark.parametrize(
        "text",
        [
            "B",
            "b.",
            "(B)",
            "**B**",
            "\\boxed{B}",
            "$\\boxed{B}$",
            "B. a red bus",
            "(b) a red bus",
            "**B.** a red bus",
            "B: a red bus",
            "the answer is B",
            "Answer: (B)",
            "**Final Answer: B**",
            "The answer is \\boxed{B}.",
            "The answer is 'B'.",
            "The answer:\nB",
            "The correct option is **B**, as A shows a car.",
            "correct choice would be option B",
            "A. is wrong; the answer is A... no, the answer is B",
            "<think>The answer is A.</think><answer>B</answer>",
            "<think>A?</think> (B) a red bus",
        ],
    )
    def test_states_the_letter(self, text: str) -> None:
        assert Choice().letter(text) == "B"
        assert Choice().score(text, "B") == Choice().score(REASONED.replace(">A<", ">B<"), text) == 1.0
        assert Choice().score(text, "A") == 0.0

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "A red bus",
            "The answer is a red bus",
            "That is the answer. A red bus",
            "The answer is Bob",
            "The answer is A-levels",
            "The answer is B's",
            "A-level",
            "A and B",
            "Z",
            "<think>B",
            "answering B",
        ],
    )
    def test_states_none(self, text: str) -> None:
        assert Choice().letter(text) is None
        assert Choice().score(text, "A") == 0.0

    def test_letters_are_a_setting(self) -> None:
        assert Choice(letters="ABCDEFGHIJ").letter("J") == "J"
        assert Choice(letters="AB").letter("C") is None

    @pytest.mark.parametrize("letters", ["abcd", "ABCA", "A1"])
    def test_other_letters_are_refused(self, letters: str) -> None:
        expected = f"letters: should be capital letters, each once, such as ABCD (found '{letters}')"
        with pytest.raises(ConfigError, match=literally(expected)):
            validate(MetricSpec, {"_target_": "vlmft.scoring.Choice", "letters": letters})

    def test_refuses_a_reference_without_a_letter(self) -> None:
        expected = "its reference 'red' states none of the letters ABCDEFGH; expected one such as B, (B) or <answer>B"
        with pytest.raises(DataError, match=literally(expected)):
            Choice().check("red")
        with pytest.raises(DataError, match=literally(expected)):
            Choice().score("A", "red")

    def test_takes_no_time_on_what_models_repeat(self) -> None:
        """A pattern that tried every split of a run of marks would take hours here."""
        start = time.process_time()
        for text in ("*" * 20_000 + "x", "answer " * 3000, "the answer is option " + "* " * 10_000 + "x"):
            assert Choice().letter(text) is None
        assert time.process_time() - start < 1


def test_are_right_or_wrong() -> None:
    assert all(metric.is_binary for metric in (Format, Correctness, Choice))
