"""GRPO teaches a tiny model to look: its mean reward on held-out pictures rises, and falls behind other pictures."""

import statistics
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import vlmft
from tests.e2e.conftest import read_lines, read_result, run_here
from tests.e2e.test_learning import blind
from vlmft.config.app import load_config
from vlmft.data.run_data import open_run_data
from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoder
from vlmft.evaluation.generate import Evaluator
from vlmft.train import TrainConfig
from vlmft.types import Image, Message, Sample, Solution

FIRST = ("trainer.max_steps=40", "evaluation=none")
"""Supervised: enough to answer with a colour, and right in a third of the cases, as most are without looking."""

THEN = (
    *("trainer=grpo", "dataset=shapes", "reward=correctness", "metric=none"),
    *("trainer.max_steps=60", "trainer.max_new_tokens=4", "optim.lr=1e-3", "optim.schedule=constant"),
    *("evaluation.max_samples=240", "evaluation.max_new_tokens=4", "trainer.save_completions=30"),
)
COMMON = ("preview=0", "trainer.num_workers=0", "logger=none")


@pytest.mark.slow
def test_the_mean_reward_rises_because_of_the_pictures(tmp_path: Path) -> None:
    assert run_here(*FIRST, *COMMON, f"run.dir={tmp_path / 'sft'}") == 0
    run = tmp_path / "grpo"
    assert run_here(*THEN, *COMMON, f"model.adapter={tmp_path / 'sft'}", f"run.dir={run}") == 0
    result = read_result(run)["eval"]
    assert result["base"]["reward"] < 0.45
    assert result["tuned"]["reward"] > result["base"]["reward"] + 0.1
    assert result["p_value"] < 0.001
    low = result["intervals"]["tuned"]["reward"][0]
    assert low > blind(run / "predictions/tuned.jsonl") + 0.1  # no answer that takes no look is as good
    lines = [line for line in read_lines(run) if "reward" in line]
    first, last = (sum(line["reward"] for line in some) / 15 for some in (lines[:15], lines[-15:]))
    assert last > first + 0.1
    assert sorted(path.name for path in (run / "completions").iterdir()) == [
        f"step-{step:08d}.parquet" for step in (1, 30, 60)
    ]
    assert behind_other_pictures(run) < low - 0.1


@pytest.mark.slow
def test_two_ranks_share_a_step_and_keep_all_completions(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("trainer=grpo", "dataset=demo_grpo", "reward=length", "reward.length.unit=characters", "metric=none")
    more = ("trainer.max_steps=2", "trainer.max_new_tokens=3", "trainer.save_completions=1", "trainer.beta=0.1")
    ranks = ("strategy.ranks=2", "strategy.device=cpu", "evaluation=none", "trainer.scale_rewards=batch")
    assert run_here(*words, *more, *ranks, *COMMON, f"run.dir={run}", "reward.length.least=20") == 0
    lines = [line for line in read_lines(run) if "reward" in line]
    for number, line in enumerate(lines, start=1):
        rows = pq.read_table(run / f"completions/step-{number:08d}.parquet").to_pylist()
        assert len(rows) == 16 * 8 and len({row["id"] for row in rows}) == 16
        halves = [[row["completion"] for row in rows[:64]], [row["completion"] for row in rows[64:]]]
        assert halves[0] != halves[1]  # ranks draw differently
        assert line["reward"] == pytest.approx(sum(row["reward"] for row in rows) / len(rows))
        spread = statistics.stdev(row["reward"] for row in rows)
        for start in range(0, 128, 8):
            group = [row["reward"] for row in rows[start : start + 8]]
            expected = [(reward - sum(group) / 8) / (spread + 1e-4) for reward in group]
            assert [row["advantage"] for row in rows[start : start + 8]] == pytest.approx(expected, abs=1e-4)
    assert len(lines) == 2 and lines[0]["kl"] < 1e-6 < lines[1]["kl"]


def behind_other_pictures(run: Path) -> float:
    """The tuned model's mean reward where each question has the next sample's pictures."""
    config = load_config(run / "config.yaml", TrainConfig)
    data = open_run_data(config.dataset, config.eval_dataset, config.holdout, config.seed, None)
    samples = [sample for sample in data.held_out_samples(120) if len(sample.images) == 1]
    swapped = [with_picture(one, other.images[0]) for one, other in zip(samples, samples[1:], strict=False)]
    model, processor = vlmft.load(run)
    parts = (Encoder(config.model, processor, learns=Solution), Collator(config.model, processor))
    metrics = {name: reward.metric for name, reward in config.reward.items()}
    answers = Evaluator(config.evaluation, *parts, swapped, metrics).answer(model)  # type: ignore[arg-type]
    assert len(answers) > 50
    return sum(answer.scores["correctness"] for answer in answers) / len(answers)


def with_picture(sample: Sample, picture: Image) -> Sample:
    messages = tuple(
        Message(message.role, tuple(picture if isinstance(part, Image) else part for part in message.parts))
        for message in sample.messages
    )
    return replace(sample, messages=messages)
