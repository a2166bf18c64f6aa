"""Numbers that are none, memory used up, and a kill, on one rank of two: both stop before the update, and the command
says whose fault it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import losses, read_result
from tests.faults.again import LORA, TWO, assert_goes_on, saved_step
from tests.faults.conftest import Type, assert_same_run, outcome

Injected = Callable[[str], dict[str, str]]

WORDS = (*LORA, *TWO, "trainer.max_steps=10", "trainer.save_every=2")

# Comes before what goes wrong in step BAD_STEP (from 1) of rank 1: `spoil(loss, model)` returns the loss. Each rank
# notes the samples of its last step.
SPOILT = """
import json, pathlib
import torch
from vlmft.training import sft, trainer
original, train = sft.supervised_loss, trainer.StepTrainer.training_step
rank, now = os.environ["RANK"], []

def training_step(self, model, step, *args):
    now[:] = [self.state.global_step + 1]
    pathlib.Path(f"samples.{rank}").write_text(json.dumps([sample.id for sample in step.samples]))
    if now == [int(os.environ["BAD_STEP"])] and "SILENT" in os.environ:
        for sample in step.samples:
            sample.supervised[:] = False
    return train(self, model, step, *args)

def supervised_loss(model, *args):
    loss = original(model, *args)
    bad = rank == "1" and now == [int(os.environ["BAD_STEP"])]
    return spoil(loss, model) if bad else loss

sft.supervised_loss, trainer.StepTrainer.training_step = supervised_loss, training_step
"""
NAN = "spoil = lambda loss, model: loss * float('nan')"
INF = "spoil = lambda loss, model: loss + float('inf')"
INF_GRADIENT = """
def spoil(loss, model):
    weight = next(weight for weight in model.parameters() if weight.requires_grad)
    weight.register_hook(lambda gradient: torch.full_like(gradient, float("inf")))
    return loss
"""
NO_MEMORY = """
def spoil(loss, model):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
"""
KILLED = """
import signal
def spoil(loss, model):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def bad_step(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "bad_step.json").read_text())
    return found


def errors(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("error: ")]


def samples_of(work: Path, rank: int) -> list[str]:
    found: list[str] = json.loads((work / f"samples.{rank}").read_text())
    return found


@pytest.mark.slow
def test_a_loss_that_is_no_number_on_one_of_two_ranks(type_: Type, work: Path, injected: Injected) -> None:
    code, err = type_(*WORDS, **injected(SPOILT + NAN), BAD_STEP="3").ended()
    assert code == 3, err
    assert outcome(work / "run") == ("failed", 3)
    (mine,), others = samples_of(work, 1), samples_of(work, 0)
    reason = (
        f"the loss of step 3 is nan; the weights were not updated. The samples: {mine}. "
        "Lower optim.lr, or look at these samples"
    )
    assert mine not in others
    assert bad_step(work / "run") == {"step": 3, "reason": reason, "samples": [mine]}
    assert read_result(work / "run")["reason"] == reason
    assert sorted(errors(err)) == [f"error: rank 0: {reason}", f"error: rank 1: {reason}"]
    assert "Traceback" not in err
    assert len(losses(work / "run")) == 2 and saved_step(work / "run") == 2


@pytest.mark.slow
def test_one_fault_after_another(type_: Type, work: Path, injected: Injected) -> None:
    """The same command each time: it gets past the step at which the one before it failed, and fails later."""

    def fails_at(step: int, spoilt: str, code: int) -> str:
        found, err = type_(*WORDS, **injected(SPOILT + spoilt), BAD_STEP=str(step)).ended()
        assert found == code, err
        assert outcome(work / "run") == ("failed", code)
        assert len(losses(work / "run")) == step - 1 and saved_step(work / "run") == step - 1
        return str(read_result(work / "run")["reason"])

    assert fails_at(3, INF, 3).startswith("the loss of step 3 is inf; the weights were not updated. The samples: ")
    assert bad_step(work / "run")["samples"] == samples_of(work, 1)

    reason = fails_at(5, INF_GRADIENT, 3)
    assert reason.startswith("the gradient norm of step 5 is inf; the weights were not updated. The samples: ")
    # A gradient is the ranks' sum: nobody knows any more whose it was.
    samples = [*samples_of(work, 0), *samples_of(work, 1)]
    assert bad_step(work / "run") == {"step": 5, "reason": reason, "samples": samples}

    first, *hints = fails_at(7, NO_MEMORY, 4).splitlines()
    assert first == "rank 1: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert any(hint.startswith("change, in order of effect: batching.max_tokens (lower)") for hint in hints), hints
    assert not (work / "run" / "bad_step.json").exists()

    # As the kernel does where the machine's memory is used up.
    assert fails_at(9, KILLED, 137) == "rank 1 was killed by signal SIGKILL"

    assert type_(*WORDS).ended()[0] == 0
    assert type_(*WORDS, "run.dir=undisturbed").ended()[0] == 0
    assert_same_run(work / "undisturbed", work / "run")


@pytest.mark.slow
def test_a_step_without_a_supervised_token(type_: Type, work: Path, injected: Injected) -> None:
    """No data leads there: an answer without a token is refused as it is read. A fault of the program might."""
    words = (*LORA, "trainer.num_workers=0", "trainer.max_steps=4", "trainer.save_every=2")
    code, err = type_(*words, **injected(SPOILT), BAD_STEP="3", SILENT="1").ended()
    assert code == 3, err
    assert outcome(work / "run") == ("failed", 3)
    samples = samples_of(work, 0)
    reason = f"step 3 has no supervised token. The samples: {', '.join(samples)}. Look at their answers"
    assert bad_step(work / "run") == {"step": 3, "reason": reason, "samples": samples}
    assert read_result(work / "run")["reason"] == reason
    assert errors(err) == [f"error: {reason}"]
    assert saved_step(work / "run") == 2
    assert_goes_on(work, *words)
