"""Runs that something happens to: signals, kills, a full disk, numbers that are none."""

import os
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.conftest import command, environment, losses, read_lines, read_result, until
from tests.support import CLOCKED

STEPS = 60
SMALL = (
    "run.dir=run",
    "evaluation=none",
    "logger=none",
    "dataset.shapes.train_samples=64",
    "dataset.shapes.eval_samples=8",
    "global_batch_size=2",
    f"trainer.max_steps={STEPS}",
    "trainer.num_workers=1",
)
TIMEOUT_S = 180.0


@dataclass
class Driver:
    """A command that was typed, and is watched."""

    process: "subprocess.Popen[str]"
    run: Path

    def below(self) -> list[psutil.Process]:
        """Every process that it has started, and they."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def ranks(self) -> list[psutil.Process]:
        """Rank 0 first."""
        found = sorted(psutil.Process(self.process.pid).children(), key=lambda child: child.create_time())
        return [child for child in found if "vlmft.worker" in child.cmdline()]

    def until(self, condition: Callable[[], object], what: str) -> None:
        until(lambda: self.process.poll() is not None or condition(), what, TIMEOUT_S)
        assert self.process.poll() is None, self.process.communicate()

    def trained(self, steps: int = 3) -> None:
        """Wait until so many steps are logged."""
        self.until(lambda: (self.run / "metrics.jsonl").exists() and len(losses(self.run)) >= steps, "the first steps")

    def ended(self) -> tuple[int, str]:
        """Wait; returns exit code and stderr, once no process is left."""
        below = self.below()
        _, err = self.process.communicate(timeout=TIMEOUT_S)
        _, alive = psutil.wait_procs(below, timeout=5)
        assert [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
        return self.process.returncode, err


Type = Callable[..., Driver]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture
def type_(work: Path) -> Iterator[Type]:
    """Type the small run with further `words`; `out` is where its output goes."""
    typed: list[Driver] = []

    def start(*words: str, out: int = subprocess.PIPE, **more: str) -> Driver:
        process = subprocess.Popen(
            command(*SMALL, *words), cwd=work, env=environment(**more), stdout=out, stderr=subprocess.PIPE, text=True
        )
        name = next((word for word in reversed(words) if word.startswith("run.dir=")), "run.dir=run")
        typed.append(Driver(process, work / name.partition("=")[2]))
        return typed[-1]

    yield start
    for driver in typed:
        if driver.process.poll() is None:
            for child in driver.below():
                child.kill()
            driver.process.kill()
        driver.process.communicate()


@pytest.fixture
def injected(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """The environment in which every rank carries out `code` before its own."""

    def make(code: str) -> dict[str, str]:
        folder = tmp_path / "injected"
        folder.mkdir(exist_ok=True)
        lines = f"import os\nif os.environ.get('RANK'):\n{textwrap.indent(textwrap.dedent(code), '    ')}"
        (folder / "sitecustomize.py").write_text(lines)
        return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}

    return make


def outcome(run: Path) -> tuple[str, int]:
    result = read_result(run)
    return result["state"], result["exit_code"]


def figures(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock says."""
    return [{key: value for key, value in line.items() if key not in ("time", *CLOCKED)} for line in read_lines(run)]


def assert_same_run(one: Path, other: Path) -> None:
    """The same weights and lines, to the bit."""
    assert outcome(one) == outcome(other) == ("done", 0)
    for file in (one / "final").glob("*.safetensors"):
        assert file.read_bytes() == (other / "final" / file.name).read_bytes()
    assert figures(one) == figures(other)
    assert read_result(one)["train"]["loss"] == read_result(other)["train"]["loss"]
