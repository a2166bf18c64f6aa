from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import compose, encoding, tiny, tiny_processor
from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.errors import ConfigError, DataError
from vlmft.evaluation import Generate
from vlmft.evaluation.answers import Answer, read_answers, write_answers
from vlmft.evaluation.classes import ClassJudge
from vlmft.types import Classes, Labels, Message, Sample

CLASSES = ("cat", "dog", "fish")
SAID = [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.2, 0.1, 0.7]]


class Saying(torch.nn.Module):
    """Gives these probabilities, one sample after another."""

    def __init__(self, said: list[list[float]], multi: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.said, self.multi = torch.tensor(said), multi

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        taken, self.said = self.said[: len(inputs["input_ids"])], self.said[len(inputs["input_ids"]) :]
        return torch.logit(taken) if self.multi else taken.log()


def judge(*truth: tuple[str, ...], multi: bool = False, names: tuple[str, ...] = CLASSES, **spec: Any) -> ClassJudge:
    samples = [
        Sample(f"mine/{number}", (Message("user", ("Which?",)),), target=Labels(own, multi))
        for number, own in enumerate(truth)
    ]
    evaluation = compose("trainer=classification").evaluation
    assert isinstance(evaluation, Generate)
    _, collator = encoding()
    encoder = Encoder(tiny(), tiny_processor(), learns=Labels)
    return ClassJudge(
        evaluation.model_copy(update={"batch_size": 3} | spec),
        encoder,
        collator,
        samples,
        classes=Classes(names, multi),
        frequencies=[0.5, 0.3, 0.2][: len(names)],
        threshold=0.5,
    )


@pytest.fixture
def of_four() -> ClassJudge:
    return judge(("cat",), ("dog",), ("dog",), ("fish",))


def test_an_answer_says_which_class_and_how_likely_each_is(of_four: ClassJudge) -> None:
    answers = of_four.answer(Saying(SAID))
    assert [(answer.id, answer.question, answer.reference, answer.prediction) for answer in answers] == [
        ("mine/0", "Which?", "cat", "cat"),
        ("mine/1", "Which?", "dog", "cat"),
        ("mine/2", "Which?", "dog", "dog"),
        ("mine/3", "Which?", "fish", "fish"),
    ]
    assert [answer.scores for answer in answers] == [{"accuracy": score} for score in (1.0, 0.0, 1.0, 1.0)]
    for answer, said in zip(answers, SAID, strict=True):
        assert answer.probabilities == pytest.approx(dict(zip(CLASSES, said, strict=True)), abs=1e-6)
        assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-12)
    scores = of_four.scores(answers)
    assert scores["accuracy"] == 0.75 and scores["f1_macro"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert scores["auroc"] == pytest.approx(1.0)


def test_answers_are_read_as_they_were_written(of_four: ClassJudge, tmp_path: Path) -> None:
    answers = of_four.answer(Saying(SAID))
    write_answers(tmp_path / "a.jsonl", answers)
    assert read_answers(tmp_path / "a.jsonl") == answers
    plain = Answer("a", "?", "b", "c", {})
    write_answers(tmp_path / "b.jsonl", [plain])
    assert read_answers(tmp_path / "b.jsonl") == [plain] and "probabilities" not in (tmp_path / "b.jsonl").read_text()


def test_the_base_is_the_training_data_s_most_frequent_class(of_four: ClassJudge) -> None:
    base = of_four.answer_base(None)
    assert {answer.prediction for answer in base} == {"cat"}
    assert base[0].probabilities == {"cat": 0.5, "dog": 0.3, "fish": 0.2}
    assert of_four.base_name == "always cat"
    assert of_four.scores(base) == pytest.approx(
        {
            "accuracy": 1 / 4,
            "f1_macro": 0.4 / 3,
            "f1_micro": 1 / 4,
            "precision_macro": 1 / 12,
            "precision_micro": 1 / 4,
            "recall_macro": 1 / 3,
            "recall_micro": 1 / 4,
            "auroc": 0.5,
        }
    )


def test_base_and_tuned_are_compared_figure_by_figure(of_four: ClassJudge) -> None:
    tuned = of_four.answer(Saying(SAID))
    compared = of_four.compare(of_four.answer_base(None), tuned)
    assert [c.metric for c in compared] == list(of_four.measures)
    assert [c.test for c in compared] == ["McNemar"] + ["bootstrap"] * 7
    assert compared[0].p_value == 0.5 and compared[0].n == 4  # two of two exchanged: 2 * (1/2)^2
    f1 = compared[1]
    assert f1.base is not None and f1.p_value is not None
    assert f1.base.value <= f1.tuned.low < f1.tuned.value <= f1.tuned.high and 0 < f1.p_value < 1
    alone = of_four.compare(None, tuned)
    assert {(c.base, c.p_value) for c in alone} == {(None, None)}


def test_of_several_labels_all_above_the_threshold_are_predicted() -> None:
    several = judge(("cat", "dog"), (), ("dog",), ("cat", "fish"), multi=True)
    said = [[0.9, 0.5, 0.1], [0.4, 0.49, 0.2], [0.6, 0.8, 0.1], [0.7, 0.1, 0.9]]
    answers = several.answer(Saying(said, multi=True))
    assert [answer.prediction for answer in answers] == ["cat, dog", "", "cat, dog", "cat, fish"]
    assert [answer.scores["accuracy"] for answer in answers] == [1, 1, 0, 1]
    assert several.base_name == "always cat"


def test_auroc_is_left_out_where_it_is_undefined() -> None:
    lacking = judge(("cat",), ("dog",))
    assert "auroc" not in lacking.measures and len(lacking.measures) == 7
    assert lacking.scores(lacking.answer_base(None)).keys() == lacking.measures.keys()
    with pytest.raises(
        ConfigError, match="evaluation.best_by: auroc is undefined where a class has no held-out sample"
    ):
        judge(("cat",), ("dog",), every_steps=1, best_by="auroc")


def test_a_held_out_sample_without_a_class_is_named(of_four: ClassJudge) -> None:
    plain = Sample("mine/plain", (Message("user", ("Which?",)), Message("assistant", ("cat",))), "a.json:1, row 0")
    with pytest.raises(DataError, match=r"^mine/plain \(a.json:1, row 0\): it holds answers .*trainer=classification"):
        ClassJudge(
            of_four.spec,
            of_four.encoder,
            of_four.collator,
            [plain],
            classes=of_four.classes,
            frequencies=[1.0, 0.0, 0.0],
            threshold=0.5,
        )


def test_the_confusion_matrix_is_drawn_into_the_run(of_four: ClassJudge, tmp_path: Path) -> None:
    of_four.draw(tmp_path, of_four.answer_base(None))
    assert (tmp_path / "confusion.png").stat().st_size > 1000


def test_samples_that_cannot_share_a_batch_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judge(("cat",), ("dog",), ("dog",))
    put: list[list[str]] = []

    def said(model: Any, encoded: list[Encoded]) -> list[list[float]]:
        put.append([one.id for one in encoded])
        return [[1.0, 0.0, 0.0] if one.id == "mine/1" else [0.0, 1.0, 0.0] for one in encoded]

    monkeypatch.setattr(found, "said", said)
    monkeypatch.setattr(found.collator, "kinds", lambda samples: [int(one.id == "mine/1") for one in samples])
    answers = found.answer(Saying([]))
    assert put == [["mine/0", "mine/2"], ["mine/1"]]
    assert [answer.prediction for answer in answers] == ["dog", "cat", "dog"]
