"""Commands as a user types them: in a folder of their own, in processes of their own."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

# What decides where a command finds its choices, whether it joins other ranks, or where its tracker writes.
_FROM_OUTSIDE = (
    "VLMFT_PATH",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "HYDRA_FULL_ERROR",
    "WANDB_DIR",
)

TIMEOUT_S = 600


@dataclass(frozen=True)
class Ended:
    """What came of a command."""

    code: int
    out: str
    err: str
    folder: Path
    """Where it was typed."""

    @property
    def run(self) -> Path:
        """The one run folder below."""
        (found,) = self.folder.glob("**/config.yaml")
        return found.parent

    @property
    def result(self) -> dict[str, Any]:
        return read_result(self.run)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return read_lines(self.run)

    @property
    def errors(self) -> list[str]:
        """The lines of stderr, each of which has to be an error in vlmft's form."""
        lines = self.err.splitlines()
        assert all(line.startswith("error: ") for line in lines), self.err
        return [line.removeprefix("error: ") for line in lines]


def read_result(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    return found


def read_lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_lines(run) if "loss" in line]


def environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _FROM_OUTSIDE} | more


def command(*words: str, module: str = "vlmft.train") -> list[str]:
    return [sys.executable, "-m", module, *words]


def typed_in(folder: Path, *words: str, module: str = "vlmft.train", **more: str) -> Ended:
    """Type `python -m vlmft.train *words`, or another command, in `folder` and wait."""
    done = subprocess.run(
        command(*words, module=module),
        cwd=folder,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    return Ended(done.returncode, done.stdout, done.stderr, folder)


def run_here(*words: str) -> int:
    """Train in this process, as the only rank of a launcher; saves the seconds that imports take."""
    from vlmft.config.app import run_app
    from vlmft.train import TrainConfig, train

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    handlers = {number: signal.getsignal(number) for number in numbers}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", "0")
        patch.setenv("WORLD_SIZE", "1")
        code = run_app("train", TrainConfig, train, argv=words)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return code


Typed = Callable[..., Ended]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """An empty folder to type in."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture
def typed(work: Path) -> Typed:
    """`typed(*words, **environment)` in this test's folder."""
    return lambda *words, **more: typed_in(work, *words, **more)


@pytest.fixture
def started(work: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Like `typed`, without waiting; whatever a failed test leaves is ended."""
    processes: list[subprocess.Popen[str]] = []

    def start(*words: str, module: str = "vlmft.train", **more: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            command(*words, module=module),
            cwd=work,
            env=environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def default_run(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """`python -m vlmft.train` and nothing else: typed once a session, however many xdist workers there are."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "default"
    with (shared / "default.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "default.json").exists():
            folder.mkdir()
            ended = typed_in(folder)
            (shared / "default.json").write_text(json.dumps([ended.code, ended.out, ended.err]))
    code, out, err = json.loads((shared / "default.json").read_text())
    return Ended(code, out, err, folder)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A user root; write entries with `entry`."""
    (tmp_path / "my" / "registry" / "datasets").mkdir(parents=True)
    return tmp_path / "my"


def entry(root: Path, name: str, **fields: Any) -> Path:
    """Write a dataset entry to a file of its own; it may be given a `_target_`."""
    values = {"_target_": "vlmft.data.LLaVADataset"} | fields
    path = root / "registry" / "datasets" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([f"{name}:", *(f"  {key}: {json.dumps(value)}" for key, value in values.items())]) + "\n")
    return path


def until(condition: Callable[[], object], what: str, timeout_s: float = 120.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.05)


def copy_checkpoint(folder: Path) -> Path:
    """Copy the tiny checkpoint to where a user may have one."""
    from tests.support import tiny

    shutil.copytree(tiny().folder(), folder)
    return folder
