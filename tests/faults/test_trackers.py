"""Real trackers that something happens to: a server that is not there, or never answers; a full disk."""

import contextlib
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import losses, read_result
from tests.faults.conftest import Driver, Type, outcome
from vlmft.training.stop import ECHO_S

KEY = "c0ffee5ca1ab1e00" + "c0ffee5ca1ab1e00" + "deadbeef"  # of the form that wandb expects
SHORT = ("trainer.max_steps=4", "trainer.num_workers=0")
GOES_ON = "Training goes on; metrics.jsonl has every figure"


def wandb_at(address: str, home: Path, init_timeout_s: int) -> dict[str, str]:
    """The environment of a run that is to report to this server."""
    return {
        "WANDB_MODE": "online",
        "WANDB_BASE_URL": address,
        "WANDB_API_KEY": KEY,
        "WANDB_INIT_TIMEOUT": str(init_timeout_s),
        "WANDB_QUIET": "true",  # else it asks who it is, for ten seconds, only to greet
        "HOME": str(home),
    }


def warnings(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("WARNING")]


@pytest.fixture
def silent_server() -> Iterator[socket.socket]:
    """Takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        yield server


def serves_wandb(driver: Driver) -> bool:
    """Whether wandb's own process is there."""
    names = []
    for process in driver.below():
        with contextlib.suppress(psutil.NoSuchProcess):
            names.append(process.name())
    return "wandb-core" in names


@pytest.mark.slow
def test_wandb_whose_server_is_not_there(type_: Type, work: Path) -> None:
    """It costs a warning; no file, no output holds its key, and no process is left."""
    with (work / "out").open("w") as out:
        driver = type_("logger=wandb", *SHORT, out=out.fileno(), **wandb_at("http://127.0.0.1:9", work, 1))
        driver.until(lambda: serves_wandb(driver), "wandb's process")
        code, err = driver.ended()
    assert code == 0, err
    (warning,) = warnings(err)
    assert warning.startswith("WARNING vlmft.training.trackers: wandb failed and gets nothing more of this run: Comm")
    assert "127.0.0.1:9" in warning and warning.endswith(GOES_ON)
    assert "Traceback" not in err and KEY not in err
    assert outcome(work / "run") == ("done", 0)
    assert len(losses(work / "run")) == read_result(work / "run")["steps"] == 4
    assert list((work / "run" / "tb").iterdir()) and not (work / "wandb").exists()
    files = [path for path in work.rglob("*") if path.is_file()]
    assert {"out", "debug.log", "config.yaml", "metrics.jsonl"} <= {path.name for path in files}
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


@pytest.mark.slow
def test_a_second_signal_while_wandb_waits_for_its_server(
    type_: Type, work: Path, silent_server: socket.socket
) -> None:
    """The first waits for the step's end, which is not in sight; the second is not taken for wandb's failure.

    wandb lets its process end only once its own time is up.
    """
    host, port = silent_server.getsockname()
    driver = type_("logger=wandb", *SHORT, **wandb_at(f"http://{host}:{port}", work, 6))
    connection, _ = silent_server.accept()
    driver.until(lambda: "running" in read_result(work / "run")["state"], "the start")
    (rank,) = driver.ranks()
    rank.send_signal(signal.SIGTERM)
    time.sleep(2 * ECHO_S)
    assert rank.is_running()
    rank.send_signal(signal.SIGTERM)
    code, err = driver.ended()
    connection.close()
    assert code == 75, err
    assert outcome(work / "run") == ("preempted", 75)
    assert read_result(work / "run")["reason"] == "SIGTERM received; stopped at once"
    assert warnings(err) == [] and "Traceback" not in err


@pytest.mark.slow
def test_a_disk_that_is_full_for_tensorboard(
    type_: Type, work: Path, injected: Callable[[str], dict[str, str]]
) -> None:
    full = injected(
        """
        import logging
        import resource
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # imported here earlier than by a run
        from transformers.integrations import TensorBoardCallback
        on_log = TensorBoardCallback.on_log

        def full(self, args, state, *more, **others):
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            if state.global_step == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
            try:
                on_log(self, args, state, *more, **others)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)

        TensorBoardCallback.on_log = full
        """
    )
    code, err = type_("logger=tensorboard", *SHORT, **full).ended()
    assert code == 0, err
    assert err.splitlines() == [
        "WARNING vlmft.training.trackers: tensorboard failed and gets nothing more of this run: "
        f"OSError: [Errno 27] File too large. {GOES_ON}"
    ]
    assert outcome(work / "run") == ("done", 0) and len(losses(work / "run")) == 4
