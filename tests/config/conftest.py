"""A small project of its own for each test: a built-in root, a schema, and a way to type a command."""

import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vlmft.config.app import Composition, run_app
from vlmft.config.spec import Spec
from vlmft.config.sweep import JobRecord

PROJECT = Path(__file__).parents[2]

CONF = {
    "main.yaml": """
defaults:
  - model: tiny
  - dataset: none
  - metric: none
  - reward: none
  - optim: adam
  - _hydra
  - _self_
run:
  name: ${hydra:runtime.choices.model}
  dir: runs/${now:%Y-%m-%d}-${run.name}
seed: 0
token: null
""",
    "model/tiny.yaml": "width: 8\n",
    "model/large.yaml": "width: 800\n",
    "optim/adam.yaml": "lr: 1e-4\nbetas: [0.9, 0.95]\n",
    "extra/fast.yaml": "# @package _global_\nseed: 7\n",
}
REGISTRY = {
    "datasets/one.yaml": "A: {data_path: a.json}\nB: {data_path: b.json, media_dir: pictures}\n",
    "datasets/two.yaml": "sample_qa: {data_path: qa.json}\n",
    "metrics/all.yaml": "exact: {scale: 1.0}\nloose: {scale: 2.0}\n",
    "rewards/all.yaml": "brief: {scale: 1.0}\nright: {scale: 2.0}\n",
    "mixtures.yaml": "mix: A*2+B@0.5\n",
}


class Dataset(Spec):
    data_path: str
    media_dir: str = "."
    root: str
    factor: float


class Metric(Spec):
    scale: float


class Reward(Spec):
    scale: float
    weight: float


class Model(Spec):
    width: int


class Optim(Spec):
    lr: float
    betas: list[float]


class Run(Spec):
    name: str
    dir: str


class Main(Spec):
    model: Model
    dataset: dict[str, Dataset]
    metric: dict[str, Metric]
    reward: dict[str, Reward]
    optim: Optim
    run: Run
    seed: int
    token: str | None


def write(folder: Path, files: dict[str, str]) -> Path:
    """Write `files` below `folder`, which is returned."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@dataclass
class Typed:
    """What came of one command."""

    code: int
    out: str
    err: str
    specs: list[Main] = field(default_factory=list)
    compositions: list[Composition] = field(default_factory=list)
    sweeps: list[tuple[Path, list[JobRecord]]] = field(default_factory=list)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Remove what `--info` adds to the root logger: a handler on this test's captured output."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A built-in root; the working directory is an empty folder beside it, and no user root is known."""
    folder = tmp_path / "home"
    write(folder / "conf", CONF)
    write(folder / "registry", REGISTRY)
    shutil.copy(PROJECT / "conf/_hydra.yaml", folder / "conf")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("VLMFT_PATH", raising=False)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return folder


@pytest.fixture
def typed(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Typed]:
    """Run a command line in this process; `job` may look at what it gets, raise, or return a code."""

    def run(*argv: str, job: Callable[[Main, Composition], int] = lambda specs, composition: 0) -> Typed:
        result = Typed(0, "", "")

        def keep(specs: Main, composition: Composition) -> int:
            result.specs.append(specs)
            result.compositions.append(composition)
            return job(specs, composition)

        def sweep_done(folder: Path, records: list[JobRecord]) -> None:
            result.sweeps.append((folder, records))

        result.code = run_app("main", Main, keep, sweep_done, argv, home)
        result.out, result.err = capsys.readouterr()
        return result

    return run
