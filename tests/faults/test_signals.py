"""What a signal does to a run, when, and on which of its ranks; the same command then ends it as if nothing was."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import losses, read_result
from tests.faults.again import LORA, TWO, assert_goes_on, run_again, saved_step
from tests.faults.conftest import Driver, Type, assert_same_run, outcome

Injected = Callable[[str], dict[str, str]]

EACH_SIGNAL = pytest.mark.parametrize(
    ("number", "code", "state"),
    [(signal.SIGTERM, 75, "preempted"), (signal.SIGUSR1, 75, "preempted"), (signal.SIGINT, 130, "stopped")],
    ids=["SIGTERM", "SIGUSR1", "SIGINT"],
)

ONE_QUICK = pytest.mark.parametrize(
    ("number", "code", "state"),
    [
        (signal.SIGTERM, 75, "preempted"),
        pytest.param(signal.SIGUSR1, 75, "preempted", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, "stopped", marks=pytest.mark.slow),
    ],
    ids=["SIGTERM", "SIGUSR1", "SIGINT"],
)


@pytest.mark.slow
def test_one_of_two_ranks_is_told_to_leave(type_: Type, work: Path, injected: Injected) -> None:
    """Both save the same step, and the resumed run equals an undisturbed one.

    What a process group's threads do on the way out, once the other rank has gone, does not count: they may abort.
    """
    two = (*LORA, *TWO, "trainer.max_steps=30")
    driver = type_(*two, **injected("import atexit\natexit.register(os.abort)"))
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


@ONE_QUICK
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
def test_during_the_last_step(type_: Type, work: Path, injected: Injected) -> None:
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
@EACH_SIGNAL
def test_while_loading(type_: Type, work: Path, number: signal.Signals, code: int, state: str) -> None:
    driver = type_("trainer.max_steps=3")
    driver.until(driver.ranks, "the rank")
    # Once it holds the lock, it answers signals; the driver, which looks in before, has written to that file as well.
    lock, ranks = work / "run" / ".rank.lock", {child.pid for child in driver.ranks()}
    driver.until(lambda: (text := lock.read_text()) and json.loads(text)["pid"] in ranks, "the rank's lock")
    driver.process.send_signal(number)
    found, err = driver.ended()
    assert found == code, err
    assert outcome(work / "run") == (state, code)
    assert not (work / "run" / "checkpoints").exists()
    run_again(work, "trainer.max_steps=3")
    assert outcome(work / "run") == ("done", 0) and len(losses(work / "run")) == 3


# Goes before the code of a rank: `wait_in` says where it is, and stays there.
WAITS = """
import pathlib, time
rank = os.environ["RANK"]

def wait_in(place):
    pathlib.Path(f"{place}.{rank}").touch()
    for _ in range(1200):
        time.sleep(0.1)
"""
WHILE_EVALUATING = """
from vlmft.evaluation.generate import Evaluator
Evaluator._all_said = lambda *_: wait_in("evaluating")
"""


@pytest.mark.slow
@EACH_SIGNAL
def test_while_evaluating(
    type_: Type, work: Path, injected: Injected, number: signal.Signals, code: int, state: str
) -> None:
    words = ("trainer.max_steps=3", "trainer.save_every=2", "evaluation=generate", "evaluation.base=false")
    driver = type_(*words, **injected(WAITS + WHILE_EVALUATING))
    driver.until((work / "evaluating.0").exists, "the evaluation")
    driver.process.send_signal(number)
    found, err = driver.ended()
    assert found == code, err
    assert outcome(work / "run") == (state, code)
    assert read_result(work / "run")["reason"] == f"{number.name} received; stopped at once"
    assert "Traceback" not in err
    assert saved_step(work / "run") == 2
    run_again(work, *words)
    assert outcome(work / "run") == ("done", 0) and len(losses(work / "run")) == 3
    assert read_result(work / "run")["eval"]["n"] == 8


@pytest.mark.slow
@EACH_SIGNAL
def test_while_saving(
    type_: Type, work: Path, injected: Injected, number: signal.Signals, code: int, state: str
) -> None:
    """The save is finished, and is the one that the run goes on from."""
    words = (*LORA, "trainer.max_steps=6", "trainer.save_every=3", "trainer.num_workers=0")
    slow_save = injected(
        """
        import pathlib, time
        from vlmft.training import commit
        from vlmft.training.stop import StopRequest
        begin, hear = commit.begin, StopRequest._on_signal

        def slow(folder):
            pathlib.Path("saving").touch()
            while not os.path.exists("heard"):
                time.sleep(0.05)
            return begin(folder)

        def heard(*args):
            pathlib.Path("heard").touch()
            hear(*args)

        commit.begin, StopRequest._on_signal = slow, heard
        """
    )
    driver = type_(*words, **slow_save)
    driver.until((work / "saving").exists, "the save")
    driver.process.send_signal(number)
    found, err = driver.ended()
    assert found == code, err
    assert outcome(work / "run") == (state, code)
    assert read_result(work / "run")["reason"] == f"{number.name} received; stopped after step 3"
    assert saved_step(work / "run") == 3
    assert_goes_on(work, *words)


WHILE_LOADING = """
import torch.distributed
from vlmft.models import ModelSpec
load, broadcast = ModelSpec.load_model, torch.distributed.broadcast_object_list

def load_model(*args):
    if rank == os.environ["TOLD"]:
        wait_in("loading")
    return load(*args)

def broadcast_object_list(*args):
    pathlib.Path(f"waiting.{rank}").touch()
    broadcast(*args)

ModelSpec.load_model = load_model
torch.distributed.broadcast_object_list = broadcast_object_list
"""


@pytest.mark.slow
def test_one_of_two_ranks_is_told_to_leave_before_or_after_training(
    type_: Type, work: Path, injected: Injected
) -> None:
    """The other may wait for it, or be busy; the same command is typed each time."""
    words = (*LORA, *TWO, "trainer.max_steps=4", "evaluation=generate", "evaluation.base=false")

    def told(driver: Driver, rank: int, number: signal.Signals) -> str:
        driver.ranks()[rank].send_signal(number)
        began = time.monotonic()
        code, err = driver.ended()
        assert time.monotonic() - began < 30, "strategy.shutdown_timeout_s"
        assert code == 75, err
        assert outcome(work / "run") == ("preempted", 75)
        return str(read_result(work / "run")["reason"])

    waiting = injected(WAITS + WHILE_LOADING)
    for rank, number in ((1, signal.SIGTERM), (0, signal.SIGUSR1)):
        driver = type_(*words, **waiting, TOLD=str(rank))
        driver.until((work / f"loading.{rank}").exists, "the rank that loads")
        driver.until((work / f"waiting.{1 - rank}").exists, "the one that waits for it")
        by = "rank 1: " if rank == 1 else ""
        assert told(driver, rank, number) == f"{by}{number.name} received; stopped at once"
        (work / f"waiting.{1 - rank}").unlink()

    driver = type_(*words, **injected(WAITS + WHILE_EVALUATING))
    for rank in (0, 1):
        driver.until((work / f"evaluating.{rank}").exists, f"rank {rank} at its share")
    assert told(driver, 1, signal.SIGTERM) == "SIGTERM received; stopped at once"

    assert type_(*words).ended()[0] == 0
    assert outcome(work / "run") == ("done", 0) and len(losses(work / "run")) == 4


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(type_: Type, work: Path, injected: Injected) -> None:
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
