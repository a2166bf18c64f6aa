"""Held-out answers: the model's own log-probabilities a token rank them, whatever the batch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score

from tests.support import CPU, compose, encoding, tiny
from tests.training.rated import write_rated
from vlmft.data import UnpairedDataset
from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.errors import DataError
from vlmft.evaluation.rated import RatedJudge
from vlmft.training.kto import AnswerReader
from vlmft.types import Message, Rated, Sample

SAID = {
    "mine/one": -1.0,
    "mine/two": -2.5,
    "mine/turns": -2.0,
    "mine/system": -1.5,
    "mine/none": -2.5,
    "mine/video": -4,
}
"""Good are one, turns and none. Of nine pairs, one, turns and none beat 3, 2 and 1.5 of the bad ones."""


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    source = UnpairedDataset(data_path=write_rated(tmp_path), frames_fps=2.0).open("mine")
    return [source[row] for row in range(len(source))]


def judge(samples: Sequence[Sample], read: Any = None, batch_size: int = 4) -> RatedJudge:
    plain, collator = encoding()
    encoder = Encoder(plain.family, plain.processor, learns=Rated)
    spec = compose().evaluation.model_copy(update={"batch_size": batch_size})
    return RatedJudge(spec, encoder, collator, samples, read or AnswerReader(collator).means)


def by_heart(model: Any, answers: Sequence[Encoded]) -> torch.Tensor:
    return torch.tensor([SAID[answer.id] for answer in answers], dtype=torch.float64)


def test_good_answers_should_be_likelier_than_bad_ones(samples: list[Sample]) -> None:
    judged = judge(samples, by_heart, batch_size=3)
    answers = judged.answer(torch.nn.Identity())
    assert [answer.scores["log_prob"] for answer in answers] == list(SAID.values())
    assert [answer.reference for answer in answers] == ["good", "bad"] * 3
    assert (answers[1].question, answers[1].prediction) == ("Which digit?", "no")
    good = [answer.reference == "good" for answer in answers]
    expected = roc_auc_score(good, list(SAID.values()))
    assert (
        judged.scores(answers) == {"answer_auroc": pytest.approx(expected)} == {"answer_auroc": pytest.approx(6.5 / 9)}
    )
    (alike,) = judged.compare(answers, answers)
    assert (alike.test, alike.n, alike.p_value) == ("bootstrap", 6, 1.0)
    assert alike.base == alike.tuned and alike.tuned.low < 6.5 / 9 <= alike.tuned.high
    (alone,) = judged.compare(None, answers)
    assert alone.base is None and alone.p_value is None


def test_a_difference_that_is_sure_is_told_from_one_that_is_not(samples: list[Sample]) -> None:
    judged = judge(samples, by_heart)
    (one, two, *_) = judged.answer(torch.nn.Identity())
    random = torch.Generator().manual_seed(0)

    def answers(gap: float) -> list[Any]:
        noise = torch.randn(100, generator=random).tolist()
        both = [(one, gap), (two, 0.0)] * 50
        return [replace(a, scores={"log_prob": add + x}) for (a, add), x in zip(both, noise, strict=True)]

    base = answers(0.0)
    (same,) = judged.compare(base, answers(0.0))
    (better,) = judged.compare(base, answers(2.0))
    assert same.p_value is not None and same.p_value > 0.05
    assert better.p_value == pytest.approx(1e-3) and better.tuned.low > 0.8
    assert same.base is not None and same.base.low < 0.5 < same.base.high


def test_the_batch_changes_nothing_and_a_token_is_what_counts(samples: list[Sample]) -> None:
    model = tiny().load_model(CPU).train()
    said = [[answer.scores["log_prob"] for answer in judge(samples, batch_size=size).answer(model)] for size in (1, 4)]
    assert said[0] == pytest.approx(said[1], rel=1e-3, abs=1e-4)
    assert model.training and len({*said[0]}) == 6
    plain, collator = encoding()
    encoder = Encoder(plain.family, plain.processor, learns=Rated)
    for sample, mean in zip(samples, said[0], strict=True):
        encoded = encoder.encode(sample)
        with torch.no_grad():
            total, _ = AnswerReader(collator).sums(model.eval(), [encoded])
        assert mean == pytest.approx(float(total) / encoded.num_supervised, rel=1e-4)


def test_held_out_samples_that_cannot_be_ranked_are_refused(samples: list[Sample]) -> None:
    conversation = Sample("mine/plain", (Message("user", ("What?",)), Message("assistant", ("no",))))
    with pytest.raises(
        DataError, match=r"mine/plain.*holds answers \(trainer=sft .*trainer=kto learns from one answer"
    ):
        judge([*samples, conversation])
    with pytest.raises(DataError, match="all 3 held-out answers that are judged are bad, and answer_auroc compares"):
        judge(samples[1::2])
