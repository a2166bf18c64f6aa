"""What a signal does to a run, when, and on which of its ranks; the same command then ends it as if nothing was."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import losses, read_result
from tests.faults.conftest import Type, assert_same_run, outcome
from vlmft.training import commit

LORA = ("recipe=lora_llm", "recipe.llm.dropout=0.1")


def saved_step(run: Path) -> int:
    found, rejected = commit.newest(run / "checkpoints")
    assert found is not None and rejected == []
    return found.step


def test_one_of_two_ranks_is_told_to_leave(type_: Type, work: Path) -> None:
    """Both save the same step, and the resumed run equals an undisturbed one."""
    two = (*LORA, "strategy.ranks=2", "strategy.device=cpu", "trainer.num_workers=0", "trainer.max_steps=30")
    driver = type_(*two)
    driver.trained()
    driver.ranks()[1].send_signal(signal.SIGUSR1)
    code, err = driver.ended()
    assert code == 75, err
    assert outcome(work / "run") == ("preempted", 75)
    step = len(losses(work / "run"))
    assert read_result(work / "run")["reason"] == f"another rank was asked to stop; stopped after step {step}"
    assert f"error: rank 1: SIGUSR1 received; stopped after step {step}" in err
    assert saved_step(work / "run") == step
    files = sorted(path.name for path in (work / f"run/checkpoints/step-{step:08d}").iterdir())
    assert files == ["manifest.json", "rank-00000.pt", "rank-00001.pt", "state.pt", "trained.safetensors"]
    assert type_(*two).ended()[0] == 0
    assert type_(*two, "run.dir=undisturbed").ended()[0] == 0
    assert_same_run(work / "undisturbed", work / "run")


@pytest.mark.parametrize(
    ("number", "code", "state"),
    [
        (signal.SIGTERM, 75, "preempted"),
        pytest.param(signal.SIGUSR1, 75, "preempted", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, "stopped", marks=pytest.mark.slow),
    ],
    ids=["SIGTERM", "SIGUSR1", "SIGINT"],
)
def test_while_training(type_: Type, work: Path, number: signal.Signals, code: int, state: str) -> None:
    driver = type_(*LORA)
    driver.trained()
    driver.process.send_signal(number)
    found, err = driver.ended()
    assert found == code, err
    assert outcome(work / "run") == (state, code)
    step = len(losses(work / "run"))
    assert read_result(work / "run")["reason"] == f"{number.name} received; stopped after step {step}"
    assert saved_step(work / "run") == step
    assert type_(*LORA).ended()[0] == 0
    assert type_(*LORA, "run.dir=undisturbed").ended()[0] == 0
    assert_same_run(work / "undisturbed", work / "run")


@pytest.mark.slow
def test_during_the_last_step(type_: Type, work: Path, injected: Callable[[str], dict[str, str]]) -> None:
    """There is no next step to obey it in: it is obeyed at the end of training, and nothing is trained again."""
    words = ("trainer.max_steps=3",)
    signalled = injected(
        """
        import signal
        from vlmft.training import sft
        original, calls = sft.supervised_loss, []

        def supervised_loss(*args):
            calls.append(1)
            if len(calls) == 3:  # of three steps, one micro-batch each
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*args)

        sft.supervised_loss = supervised_loss
        """
    )
    driver = type_(*words, **signalled)
    code, err = driver.ended()
    assert code == 75, err
    assert read_result(work / "run")["reason"] == "SIGTERM received; stopped after step 3"
    assert saved_step(work / "run") == 3
    assert type_(*words).ended()[0] == 0
    assert type_(*words, "run.dir=undisturbed").ended()[0] == 0
    assert_same_run(work / "undisturbed", work / "run")


@pytest.mark.slow
def test_while_loading(type_: Type, work: Path) -> None:
    driver = type_("trainer.max_steps=3")
    driver.until(driver.ranks, "the rank")
    driver.until(lambda: (work / "run" / ".rank.lock").exists() and (work / "run" / ".rank.lock").read_text(), "it")
    driver.process.send_signal(signal.SIGTERM)
    code, _ = driver.ended()
    assert code == 75
    assert outcome(work / "run") == ("preempted", 75)
    assert not (work / "run" / "checkpoints").exists()
    assert type_("trainer.max_steps=3").ended()[0] == 0
    assert len(losses(work / "run")) == 3


@pytest.mark.slow
def test_while_evaluating(type_: Type, work: Path) -> None:
    words = ("trainer.max_steps=3", "evaluation=generate", "trainer.save_every=2", "dataset.shapes.eval_samples=400")
    driver = type_(*words)
    driver.until(lambda: (work / "run" / "final").exists(), "the end of training")
    driver.process.send_signal(signal.SIGTERM)
    code, err = driver.ended()
    assert code == 75, err
    assert read_result(work / "run")["reason"] == "SIGTERM received; stopped at once"
    assert saved_step(work / "run") == 2
    assert type_(*words).ended()[0] == 0
    assert len(losses(work / "run")) == 3


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(type_: Type, work: Path, injected: Callable[[str], dict[str, str]]) -> None:
    """While the first is being answered by a save that takes its time."""
    slow_save = injected(
        """
        import time
        from vlmft.training import commit
        commit.begin = lambda folder: time.sleep(60)
        """
    )
    driver = type_(**slow_save)
    driver.trained()
    driver.process.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    driver.process.send_signal(signal.SIGTERM)
    code, err = driver.ended()
    assert code == 128 + signal.SIGTERM, err
    assert outcome(work / "run") == ("failed", 143)
    assert read_result(work / "run")["reason"] == "rank 0 was killed at once by a second SIGTERM"
