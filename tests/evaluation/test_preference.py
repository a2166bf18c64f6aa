"""Held-out pairs: the model's own log-probabilities decide, whatever the batch; and how the figures are compared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import CPU, compose, encoding, tiny
from tests.training.pairs import write_pairs
from vlmft.data import PreferenceDataset
from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.errors import DataError
from vlmft.evaluation.preference import PairJudge
from vlmft.training.pairs import PairReader
from vlmft.types import Message, Preference, Sample

SAID = {"mine/one": (-1.0, -3.5), "mine/two": (-4.0, -2.0), "mine/turns": (-2.0, -2.0), "mine/system": (-0.5, -1.0)}


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    source = PreferenceDataset(data_path=write_pairs(tmp_path), frames_fps=2.0).open("mine")
    return [source[row] for row in range(len(source))]


def judge(samples: Sequence[Sample], read: Any = None, batch_size: int = 4) -> PairJudge:
    plain, collator = encoding()
    encoder = Encoder(plain.family, plain.processor, learns=Preference)
    spec = compose().evaluation.model_copy(update={"batch_size": batch_size})
    return PairJudge(spec, encoder, collator, samples, read or PairReader(collator).answers)


def by_heart(model: Any, pairs: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    said = torch.tensor([SAID[pair.id] for pair in pairs])
    return said[:, 0], said[:, 1]


def test_the_likelier_answer_is_preferred_and_a_tie_is_none(samples: list[Sample]) -> None:
    judged = judge([s for s in samples if s.id in SAID], by_heart, batch_size=3)
    answers = judged.answer(torch.nn.Identity())
    assert [answer.scores for answer in answers] == [
        {"preference_accuracy": 1.0, "preference_margin": 2.5},
        {"preference_accuracy": 0.0, "preference_margin": -2.0},
        {"preference_accuracy": 0.0, "preference_margin": 0.0},
        {"preference_accuracy": 1.0, "preference_margin": 0.5},
    ]
    assert [answer.prediction for answer in answers] == ["red", "no", "white or black", "nine"]
    assert [answer.reference for answer in answers] == ["red", "the digit is seven", "black", "nine"]
    assert answers[2].question == "And the background?"
    assert judged.scores(answers) == {"preference_accuracy": 0.5, "preference_margin": 0.25}
    accuracy, margin = judged.compare(answers, answers)
    assert (accuracy.test, margin.test) == ("McNemar", "permutation")
    assert (accuracy.tuned.low, accuracy.tuned.high) == pytest.approx((0.150, 0.850), abs=1e-3)  # Wilson, 2 of 4
    # t of 3 degrees at 97.5 % is 3.18245; the standard error of (2.5, -2, 0, 0.5) is 0.92421.
    assert (margin.tuned.low, margin.tuned.high) == pytest.approx((0.25 - 2.9413, 0.25 + 2.9413), abs=1e-3)


def test_the_batch_changes_nothing_and_the_model_is_left_as_it_came(samples: list[Sample]) -> None:
    model = tiny().load_model(CPU).train()
    margins = [
        [answer.scores["preference_margin"] for answer in judge(samples, batch_size=size).answer(model)]
        for size in (1, 4)
    ]
    assert len(margins[0]) == 6 and max(map(abs, margins[0])) > 0.1
    assert margins[0] == pytest.approx(margins[1], rel=1e-3, abs=1e-4)
    assert model.training


def test_held_out_samples_of_another_kind_are_refused(samples: list[Sample]) -> None:
    conversation = Sample("mine/plain", (Message("user", ("What?",)), Message("assistant", ("no",))))
    with pytest.raises(DataError, match=r"mine/plain.*holds answers \(trainer=sft .*trainer=dpo learns from a chosen"):
        judge([*samples, conversation])
