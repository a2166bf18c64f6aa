"""Rated answers from the command line: a run ends with a table, learns, and two ranks train what one does."""

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Typed, entry, losses, read_lines, read_result, run_here
from tests.e2e.test_ranks import assert_same_training
from tests.training.rated import write_rated


@pytest.mark.slow
def test_learns_what_is_a_good_answer(tmp_path: Path) -> None:
    """Every other answer is a wrong colour: without looking, good and bad ones are equally likely."""
    run = tmp_path / "run"
    words = (
        "trainer=kto",
        "dataset=demo_kto",
        "dataset.demo_kto.train_samples=480",
        "trainer.max_steps=55",
        "preview=0",
    )
    assert run_here(*words, "logger=none", f"run.dir={run}") == 0
    scores = read_result(run)["eval"]
    assert scores["n"] == 120
    low, high = scores["intervals"]["base"]["answer_auroc"]
    assert low < 0.5 < high
    assert scores["intervals"]["tuned"]["answer_auroc"][0] > 0.6 and scores["p_value"] < 0.01
    lines = [line for line in read_lines(run) if "loss" in line]
    assert lines[0]["loss"] == pytest.approx(0.5, rel=1e-3)
    assert sum(line["rewards/good"] - line["rewards/bad"] for line in lines[-10:]) / 10 > 0.3


@pytest.mark.slow
def test_two_ranks_train_what_one_does(typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank has one sample a step: the answer behind its prompt is the other rank's."""
    data = {"_target_": "vlmft.data.UnpairedDataset", "frames_fps": 2.0}
    entry(tmp_path, "mine", data_path=str(write_rated(tmp_path / "data")), **data)
    words = (
        "trainer=kto", "trainer.beta=0.5", "dataset=mine", "recipe=ln_vt_lora_llm", "global_batch_size=2",
        "trainer.max_steps=6", "trainer.num_workers=0", "evaluation=none", "optim.warmup=0", "optim.eps=1e-3",
        "optim.lr=1e-2", "strategy.device=cpu",
    )  # fmt: skip
    ended = typed(*words, "strategy.ranks=2", VLMFT_PATH=str(tmp_path))
    assert ended.code == 0, ended.err
    monkeypatch.setenv("VLMFT_PATH", str(tmp_path))
    alone = tmp_path / "alone"
    assert run_here(*words, f"run.dir={alone}") == 0
    assert_same_training(alone, ended.run)
    one, two = ([line["kl"] for line in read_lines(run)] for run in (alone, ended.run))
    assert max(one) > 1e-3 and two == pytest.approx(one, rel=1e-3, abs=1e-6)
    assert losses(alone)[0] == pytest.approx(0.5, rel=1e-5)


def test_what_cannot_be_rated_ends_before_weights_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and no run folder."""
    file = write_rated(tmp_path / "data")
    entry(tmp_path, "mine", _target_="vlmft.data.UnpairedDataset", frames_fps=2.0, data_path=str(file))
    monkeypatch.setenv("VLMFT_PATH", str(tmp_path))
    words = ("trainer=kto", "dataset=mine", f"run.dir={tmp_path / 'run'}")
    rows = json.loads(file.read_text())
    file.write_text(json.dumps([row | {"label": True} for row in rows]))
    assert run_here(*words) == 2
    assert "all 6 training samples have 'label': true" in capfd.readouterr().err
    file.write_text(json.dumps([rows[0] | {"label": "yes"}, *rows[1:]]))
    assert run_here(*words) == 2
    assert "mine/one" in (said := capfd.readouterr().err) and "its 'label' is 'yes'; expected true" in said
    assert not (tmp_path / "run").exists()
