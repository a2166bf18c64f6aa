"""GRPO through the step trainer: the step is the same however it is cut, and a resumed run is the run."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import set_seed

from tests.support import compose
from tests.training.conftest import Bench
from tests.training.rolling import VARIED
from tests.training.test_checkpoint import Life, assert_same_run, killed_at, terminated_at, train
from vlmft.training import commit
from vlmft.training.checkpoint import Checkpoints
from vlmft.training.grpo import GrpoObjective
from vlmft.training.grpo_spec import Grpo
from vlmft.training.reference import StartValues
from vlmft.training.rollouts import OwnRoller
from vlmft.training.stop import StopRequest
from vlmft.types import Solution

MakeBench = Callable[..., Bench]

SMALL = (
    "trainer=grpo",
    "global_batch_size=2",
    "trainer.num_workers=0",
    "trainer.max_steps=4",
    "trainer.num_generations=2",
    "trainer.max_new_tokens=4",
)
DROPOUT = ("recipe=lora_llm", "recipe.llm.dropout=0.1")


@pytest.fixture
def grpo(bench: MakeBench) -> MakeBench:
    """Make a bench that learns from rewards which differ for any two texts."""

    def make(*words: str, **replaces: Any) -> Bench:
        made = bench(*SMALL, *words, **replaces)
        made.steps.encoder.learns = Solution
        parts, spec = made.trainer.parts, compose(*SMALL, *words).trainer
        assert isinstance(spec, Grpo)
        parts.objective = GrpoObjective(
            spec,
            made.model,
            OwnRoller(made.model, parts.collator, spec, 0),
            parts.collator,
            parts.batching,
            VARIED,
            num_steps=made.steps.plan.num_steps,
            ahead=made.step,
            reference=StartValues(made.model).put_in if spec.beta > 0 else None,
        )
        return made

    return make


@pytest.fixture
def begin(grpo: MakeBench, tmp_path: Path) -> Callable[..., Life]:
    """Make a trainer that begins at the newest checkpoint in `folder`."""

    def make(*words: str, every: int | None = None, folder: str = "checkpoints") -> Life:
        start, _ = commit.newest(tmp_path / folder)
        set_seed(0)
        stop = StopRequest(deferred=True)
        made = grpo(*words, stop=stop)
        if start:
            made.trainer.parts.loader.start = start.step
            set_seed(12345)  # what a new process draws is not what the old one would have drawn
        made.trainer.add_callback(Checkpoints(made.trainer, tmp_path / folder, every, 2, {}, start))
        return Life(made, stop)

    return make


@pytest.mark.parametrize(
    "words", [(), pytest.param(("trainer.loss=grpo", "trainer.scale_rewards=batch"), marks=pytest.mark.slow)]
)
def test_the_cut_does_not_change_the_step(grpo: MakeBench, words: tuple[str, ...]) -> None:
    whole = grpo(*words, "global_batch_size=6")
    loss, expected = whole.gradients(whole.step())
    longest = max(sample.num_tokens for sample in whole.step().samples) + 4
    cut = grpo(*words, "global_batch_size=6", f"batching.max_tokens={longest}", "batching=padded")
    found_loss, found = cut.gradients(cut.step())
    assert whole.trainer.meters.progress.micro_batches == 1 and cut.trainer.meters.progress.micro_batches > 4
    assert found_loss == pytest.approx(loss, abs=1e-5)
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-2
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-5, rtol=1e-3)


def test_a_line_of_figures_says_what_was_earned(grpo: MakeBench) -> None:
    made = grpo("trainer.beta=0.1", "trainer.log_every=2")
    made.trainer.train()
    lines = [line for line in made.lines if "reward" in line]
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        assert 0 < line["reward"] < 2 and line["reward"] == pytest.approx(2 * line["rewards/varied"])
        assert 0 <= line["frac_reward_zero_std"] <= 1 and 0 < line["completion_length"] <= 4
        assert 0 < line["entropy"] < math.log(555)
    assert lines[0]["kl"] < lines[1]["kl"]  # of the first step it is 0


def test_every_trained_weight_moves_and_no_other(grpo: MakeBench) -> None:
    made = grpo("recipe=lora_llm", "optim.lr=0.01")
    before = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    made.trainer.train()
    moved = {name for name, p in made.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in made.model.named_parameters() if p.requires_grad}


class TestResume:
    @pytest.mark.parametrize(
        "words",
        [
            pytest.param(DROPOUT, marks=pytest.mark.slow, id="own"),
            pytest.param((*DROPOUT, "trainer.steps_per_generation=3", "trainer.beta=0.1"), id="ahead"),
        ],
    )
    def test_after_a_signal(self, begin: Callable[..., Life], words: tuple[str, ...]) -> None:
        whole = train(begin(*words, folder="undisturbed"))
        stopped = terminated_at(begin(*words), 2)
        assert_same_run(whole, stopped, train(begin(*words)))

    @pytest.mark.slow
    def test_after_a_kill(self, begin: Callable[..., Life]) -> None:
        words = ("trainer.steps_per_generation=2",)
        whole = train(begin(*words, folder="undisturbed"))
        first = killed_at(begin(*words, every=1), 3)
        assert_same_run(whole, first, train(begin(*words)))
