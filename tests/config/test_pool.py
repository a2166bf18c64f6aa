"""`hydra/launcher=pool`: what Hydra's words become, and the commands that jobs are."""

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from vlmft.config.app import run_app
from vlmft.config.pool import JobEnded, PoolJob, PoolSettings, StopEarly
from vlmft.config.sweep import JobRecord
from vlmft.errors import PreemptedError

from .conftest import PROJECT, Main, write

POOL = ("-m", "hydra/launcher=pool", "run.dir=s")


class Pool:
    """Runs nothing; notes what it was to run, and says that jobs ended with `codes`."""

    def __init__(self, codes: dict[int, int] | None = None, error: Exception | None = None) -> None:
        self.codes, self.error = codes or {}, error
        self.jobs: list[PoolJob] = []
        self.settings: PoolSettings | None = None

    def __call__(
        self, jobs: Iterable[PoolJob], settings: PoolSettings, ended: JobEnded, stop_early: StopEarly | None = None
    ) -> None:
        self.settings = settings
        for job in reversed(list(jobs)):
            self.jobs.append(job)
            ended(job, self.codes.get(job.number, 0), "why" if job.number in self.codes else "")
        if self.error:
            raise self.error


Typed = Callable[..., tuple[int, list[JobRecord], str]]


@pytest.fixture
def typed(home: Path, capsys: pytest.CaptureFixture[str]) -> Typed:
    write(home / "conf", {"hydra/launcher/pool.yaml": (PROJECT / "conf/hydra/launcher/pool.yaml").read_text()})

    def type_(pool: Pool | None, *argv: str) -> tuple[int, list[JobRecord], str]:
        records: list[JobRecord] = []

        def job(specs: Main, composition: object) -> int:
            raise AssertionError("a job ran in the sweep's own process")

        code = run_app("main", Main, job, lambda _, found: records.extend(found), argv, home, pool)
        return code, records, capsys.readouterr().err

    return type_


def test_jobs_are_handed_over_checked_and_recorded_by_number(typed: Typed) -> None:
    pool = Pool({2: 4})
    code, records, err = typed(pool, *POOL, "seed=1,x,3,4", "hydra.launcher.slots=2")
    assert (code, err.splitlines()) == (
        2,
        ["error: seed: Input should be a valid integer, unable to parse string as an integer (found 'x')"],
    )
    assert [(record.number, record.exit_code) for record in records] == [(0, 0), (1, 2), (2, 4), (3, 0)]
    assert records[1].reason.startswith("seed: Input") and records[2].reason == "why"
    assert records[2].overrides[0] == "run.dir=s" or "seed=3" in records[2].overrides
    assert [job.number for job in pool.jobs] == [3, 2, 0]
    assert pool.jobs[0].folder == Path("s").absolute() / "3"
    assert pool.settings == PoolSettings(None, 1, 2)


def test_a_job_is_the_command_that_a_user_would_type(typed: Typed) -> None:
    pool = Pool()
    words = ("model=tiny", "token='a b'", "optim.betas=[0.1,0.2]", "seed=1,2", "hydra.verbose=true")
    assert typed(pool, *POOL, *words, "hydra.launcher.devices=[0,1]")[0] == 0
    command = pool.jobs[-1].command
    assert command[:3] == (sys.executable, "-m", "vlmft.main")
    assert command[3:] == (
        "model=tiny",
        "token='a b'",
        "optim.betas=[0.1,0.2]",
        "seed=1",
        "hydra.verbose=true",
        f"run.dir='{Path('s').absolute()}'",
        "++hydra.job.num=0",
        "hydra.mode=RUN",
    )
    assert pool.settings == PoolSettings(("0", "1"), 1, None)


def test_the_command_makes_the_run_that_the_sweep_would(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its number and folder included; and it ends no sweep."""
    sweep = "odd 'name', {x}"
    write(home / "conf", {"hydra/launcher/pool.yaml": (PROJECT / "conf/hydra/launcher/pool.yaml").read_text()})
    pool, seen, ends = Pool(), [], []
    place = sweep.replace("'", "\\'")
    argv = ("-m", "hydra/launcher=pool", f"run.dir='{place}'", "seed=4,5", "model=large", "optim.lr=${hydra:job.num}")
    assert run_app("main", Main, lambda *_: 1, None, argv, home, pool) == 0, capsys.readouterr().err

    def job(specs: Main, composition: object) -> int:
        seen.append((specs, composition))
        return 0

    command = next(job.command for job in pool.jobs if job.number == 1)
    code = run_app("main", Main, job, lambda *found: ends.append(found), command[3:], home)
    assert code == 0, capsys.readouterr().err
    ((specs, composition),) = seen
    assert (specs.seed, specs.model.width, specs.optim.lr) == (5, 800, 1.0)
    assert specs.run.dir == str(Path(sweep).absolute() / "1") == str(composition.run_dir)
    assert (composition.sweep_job, ends) == (1, [])


def test_a_signal_ends_the_sweep(typed: Typed) -> None:
    code, records, err = typed(Pool({0: 75}, PreemptedError("the sweep was stopped by SIGTERM")), *POOL, "seed=1,2")
    assert (code, err) == (75, "error: the sweep was stopped by SIGTERM\n")
    assert [record.exit_code for record in records] == [75, 0]


@pytest.mark.parametrize(
    ("words", "errors"),
    [
        (
            ["hydra.launcher.devices=[0,0]", "hydra.launcher.devices_per_job=0", "hydra.launcher.slots=x"],
            [
                "hydra.launcher.devices: 0 is named twice",
                "hydra.launcher.devices_per_job: should be a whole number of at least 1; found 0",
                "hydra.launcher.slots: should be a whole number of at least 1; found 'x'",
            ],
        ),
        (["hydra.launcher.slot=2"], ["hydra.launcher.slot: unknown key; did you mean slots?"]),
        (
            ["hydra/launcher=pol"],
            ["hydra/launcher: there is no option pol; did you mean pool? (chosen in hydra/config)"],
        ),
    ],
)
def test_settings_that_cannot_be(typed: Typed, words: list[str], errors: list[str]) -> None:
    code, records, err = typed(Pool(), *POOL, "seed=1,2", *words)
    assert (code, records, err.splitlines()) == (2, [], [f"error: {error}" for error in errors])


def test_a_command_without_a_pool_says_so(typed: Typed) -> None:
    code, _, err = typed(None, *POOL, "seed=1,2")
    assert (code, err) == (2, "error: hydra/launcher=pool: this command runs no jobs beside each other\n")


def test_hydra_finds_the_launcher_without_importing_torch() -> None:
    words = "['hydra/launcher=pool','--cfg','hydra','-p','hydra.launcher']"
    code = f"import sys; sys.argv[1:] = {words}; import vlmft.train as t\ntry: t.main()\nexcept SystemExit: pass\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "assert 'torch' not in sys.modules"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "slots: null" in done.stdout, done.stderr
