"""How a run ends that is told to, or made to: exit code, result.json, and nothing left running."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import losses, read_result, until

Started = Callable[..., "subprocess.Popen[str]"]

ENDLESS = (
    "run.dir=run",
    "trainer.max_steps=100000",
    "evaluation=none",
    "dataset.shapes.train_samples=64",
    "dataset.shapes.eval_samples=8",
    "global_batch_size=4",
)


@pytest.fixture
def training(started: Started, work: Path) -> tuple["subprocess.Popen[str]", list[psutil.Process]]:
    """A driver whose rank has trained some steps, and every process below it: the rank, and its loader."""
    driver = started(*ENDLESS)
    metrics = work / "run" / "metrics.jsonl"
    until(lambda: driver.poll() is not None or metrics.exists() and len(losses(work / "run")) > 3, "the fourth step")
    assert driver.poll() is None, driver.communicate()
    below = psutil.Process(driver.pid).children(recursive=True)
    assert len(below) >= 2
    return driver, below


def rank_of(below: list[psutil.Process]) -> psutil.Process:
    """The rank: the oldest."""
    return min(below, key=lambda process: process.create_time())


def all_gone(below: list[psutil.Process]) -> bool:
    return not [p for p in below if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    ("number", "code", "state"),
    [(signal.SIGTERM, 75, "preempted"), (signal.SIGINT, 130, "stopped")],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_signal_to_the_driver(
    training: tuple["subprocess.Popen[str]", list[psutil.Process]],
    work: Path,
    number: signal.Signals,
    code: int,
    state: str,
) -> None:
    driver, below = training
    driver.send_signal(number)
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == code, err
    assert all_gone(below)
    result = read_result(work / "run")
    assert (result["state"], result["exit_code"]) == (state, code)
    steps = len(losses(work / "run"))
    assert result["reason"].startswith(f"{number.name} received; stopped after step {steps}")
    assert result["seconds"] > 0
    assert f"error: {number.name} received; stopped after step {steps}" in err
    assert "Traceback" not in err
    assert not (work / "run" / "final").exists()


def test_a_rank_that_is_killed(training: tuple["subprocess.Popen[str]", list[psutil.Process]], work: Path) -> None:
    """As the kernel does where memory runs out: the rank can say nothing, so its driver does."""
    driver, below = training
    rank_of(below).kill()
    driver.communicate(timeout=60)
    assert driver.returncode == 137
    assert all_gone(below)
    result = read_result(work / "run")
    assert (result["state"], result["exit_code"]) == ("failed", 137)
    assert result["reason"] == "rank 0 was killed by signal SIGKILL"


@pytest.mark.slow
def test_a_driver_that_is_killed_takes_its_ranks_along(
    training: tuple["subprocess.Popen[str]", list[psutil.Process]], work: Path
) -> None:
    driver, below = training
    driver.kill()
    driver.communicate(timeout=60)
    until(lambda: all_gone(below), "the end of the ranks", timeout_s=30)
    assert read_result(work / "run")["state"] == "preempted"  # the rank had the time to say so
