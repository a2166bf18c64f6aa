"""Preference pairs from the command line: a run ends with a table, learns, and two ranks train what one does."""

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Typed, entry, losses, run_here
from tests.e2e.test_ranks import assert_same_training
from tests.training.pairs import write_pairs


@pytest.mark.slow
def test_learns_to_prefer_what_is_seen(typed: Typed) -> None:
    """A colour is chosen and another rejected: without looking, half of the pairs are guessed."""
    ended = typed("trainer=dpo", "dataset=demo_dpo", "trainer.max_steps=60")
    assert ended.code == 0, ended.err
    scores = ended.result["eval"]
    assert scores["n"] == 120
    assert 0.4 < scores["base"]["preference_accuracy"] < 0.65
    assert scores["intervals"]["tuned"]["preference_accuracy"][0] > 0.7
    assert scores["p_value"] < 1e-3
    assert scores["tests"]["preference_margin"]["p_value"] < 1e-2
    assert "preference_accuracy" in ended.out and "preference_margin" in ended.out
    lines = [line for line in ended.lines if "loss" in line]
    assert lines[0]["loss"] == pytest.approx(0.693147, rel=1e-3)
    assert sum(line["rewards/accuracy"] for line in lines[-10:]) / 10 > 0.75
    assert len((ended.run / "reference.jsonl").read_text().splitlines()) == 1 + 60 * 16
    answers = [json.loads(line) for line in (ended.run / "predictions/tuned.jsonl").read_text().splitlines()]
    preferred = [answer["prediction"] == answer["reference"] for answer in answers]
    assert sum(preferred) / 120 == pytest.approx(scores["tuned"]["preference_accuracy"])


@pytest.mark.slow
def test_two_ranks_train_what_one_does(typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank has text alone while the other has two pictures; the reference is shared out over both."""
    pairs = {"_target_": "vlmft.data.PreferenceDataset", "frames_fps": 2.0}
    entry(tmp_path, "mine", data_path=str(write_pairs(tmp_path / "data")), **pairs)
    words = (
        "trainer=dpo", "trainer.loss=mpo", "dataset=mine", "recipe=ln_vt_lora_llm", "global_batch_size=2",
        "trainer.max_steps=6", "trainer.num_workers=0", "evaluation=none", "optim.warmup=0", "optim.eps=1e-3",
        "strategy.device=cpu",
    )  # fmt: skip
    ended = typed(*words, "strategy.ranks=2", VLMFT_PATH=str(tmp_path))
    assert ended.code == 0, ended.err
    monkeypatch.setenv("VLMFT_PATH", str(tmp_path))
    alone = tmp_path / "alone"
    assert run_here(*words, f"run.dir={alone}") == 0
    assert_same_training(alone, ended.run)
    assert losses(alone)[0] == pytest.approx(losses(ended.run)[0], rel=1e-5)
    kept = [(folder / "reference.jsonl").read_text().splitlines()[1:] for folder in (alone, ended.run)]
    one, two = ({row["id"]: row["chosen"] for row in map(json.loads, rows)} for rows in kept)
    assert len(one) == 6 and one == pytest.approx(two, rel=1e-5)
