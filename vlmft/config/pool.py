"""`hydra/launcher=pool`: the jobs of a sweep beside each other, each a command of its own.

Hydra composes and this process checks every job first, so that a wrong value costs no process. How processes are run
is not known here: the command gives `run_app` a function for it.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from vlmft.config.sweep import given_overrides
from vlmft.errors import ConfigError

_OF_THE_SWEEP = ("hydra/launcher", "hydra/sweeper", "hydra.launcher", "hydra.sweeper", "hydra.mode", "hydra.job.num")


@dataclass(frozen=True)
class PoolJob:
    """One job of a sweep, as a command to start."""

    number: int
    overrides: tuple[str, ...]
    folder: Path
    command: tuple[str, ...]


@dataclass(frozen=True)
class PoolSettings:
    """What jobs may take; conf/hydra/launcher/pool.yaml says what each value means."""

    devices: tuple[str, ...] | None
    """None: all that are visible."""
    devices_per_job: int | None
    """None: all that there are."""
    slots: int | None


JobEnded = Callable[[PoolJob, int, str], None]
"""Called with a job, its exit code, and why where its folder does not say so."""

StopEarly = Callable[[PoolJob], bool]
"""Asked now and then of each running job: whether to stop it."""


class RunJobs(Protocol):
    """Runs jobs beside each other until all have ended."""

    def __call__(
        self, jobs: Iterable[PoolJob], settings: PoolSettings, ended: JobEnded, stop_early: StopEarly | None = None
    ) -> None:
        """Run `jobs`, taking the next one only when there is room for it.

        Raises:
            ConfigError: the settings ask for what is not there.
            InterruptedRunError, PreemptedError: a signal ended it; what ran has been told so, and has ended.
        """


@runtime_checkable
class Checker(Protocol):
    """The task that Hydra calls for each job, which can keep jobs instead of running them."""

    def keep(self, compose: Callable[[], object]) -> list[PoolJob]:
        """Return the jobs that `compose` hands to this task; one with a wrong value is recorded as failed instead."""

    def ended(self, job: PoolJob, exit_code: int, reason: str) -> None:
        """Record how a job ended."""


class PoolLauncher(BasicLauncher):
    """Composes each job as Hydra's own launcher does, then has them run beside each other."""

    run_jobs: ClassVar[RunJobs | None] = None

    def __init__(self, devices: Any = "auto", devices_per_job: Any = 1, slots: Any = None) -> None:
        super().__init__()
        self.settings = _checked(devices, devices_per_job, slots)

    @classmethod
    def single(cls) -> "PoolLauncher":
        """One job at a time, with all that the machine has."""
        launcher = cls(slots=1)
        launcher.settings = PoolSettings(None, None, 1)
        return launcher

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; return nothing for Hydra to look at, since how they ended is recorded."""
        self.run(self.compose(job_overrides, initial_job_idx))
        return []

    def compose(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[PoolJob]:
        """Compose and check jobs; return those that can be started."""
        launch = super().launch
        return self.checker.keep(lambda: launch(job_overrides, initial_job_idx))

    def run(self, jobs: Iterable[PoolJob], ended: JobEnded | None = None, stop_early: StopEarly | None = None) -> None:
        """Run jobs, and record how each ended; one that was stopped early has ended as it should."""
        stopped: set[int] = set()
        run_jobs = type(self).run_jobs
        if run_jobs is None:
            raise ConfigError("hydra/launcher=pool: this command runs no jobs beside each other")

        def stop(job: PoolJob) -> bool:
            if stop_early is not None and stop_early(job):
                stopped.add(job.number)
            return job.number in stopped

        def record(job: PoolJob, exit_code: int, reason: str) -> None:
            if job.number in stopped:
                self.checker.ended(job, 0, "")
            else:
                self.checker.ended(job, exit_code, reason)
            if ended is not None:
                ended(job, exit_code, reason)

        run_jobs(jobs, self.settings, record, stop if stop_early is not None else None)

    @property
    def checker(self) -> Checker:
        """The task, which in vlmft can always keep jobs."""
        checker: Any = self.task_function
        assert isinstance(checker, Checker)
        return checker


def register(run_jobs: RunJobs | None) -> None:
    """Make the launcher known to Hydra, with what its jobs are run by."""
    PoolLauncher.run_jobs = staticmethod(run_jobs) if run_jobs is not None else None
    plugins = Plugins.instance()
    plugins.register(PoolLauncher)
    # Hydra takes launchers only by names below this one, which it looks up here; a package of that name would have to
    # be imported at each start.
    plugins.class_name_to_class[f"hydra_plugins.vlmft.{PoolLauncher.__name__}"] = PoolLauncher


def job_command(config_name: str, hydra: Any, sweep: Path, number: int, config_dir: str | None) -> tuple[str, ...]:
    """The command that is job `number` of the sweep in `sweep`, and no other: it chooses and writes what that job does.

    The job's number is given, so that `${hydra:job.num}` and the folder are the same as in a sweep of one process.
    """
    words = [word for word in given_overrides(hydra) if word.partition("=")[0].lstrip("+") != "run.dir"]
    of_hydra = OmegaConf.to_container(hydra.overrides.hydra, resolve=False)
    assert isinstance(of_hydra, list)
    words += [str(word) for word in of_hydra if not str(word).lstrip("+~").startswith(_OF_THE_SWEEP)]
    place = str(sweep).replace("\\", "\\\\").replace("'", "\\'")
    words += [f"run.dir='{place}'", f"++hydra.job.num={number}", "hydra.mode=RUN"]
    where = ("--config-dir", config_dir) if config_dir is not None else ()
    return (sys.executable, "-m", f"vlmft.{config_name}", *where, *words)


def _checked(devices: Any, devices_per_job: Any, slots: Any) -> PoolSettings:
    problems = []
    if devices != "auto":
        devices = [str(device) for device in devices] if not isinstance(devices, str | int) else [str(devices)]
        twice = sorted({device for device in devices if devices.count(device) > 1})
        if twice:
            problems.append(f"hydra.launcher.devices: {', '.join(twice)} is named twice")
    for name, value in (("devices_per_job", devices_per_job), ("slots", 1 if slots is None else slots)):
        if type(value) is not int or value < 1:
            problems.append(f"hydra.launcher.{name}: should be a whole number of at least 1; found {value!r}")
    ConfigError.raise_if(problems)
    return PoolSettings(None if devices == "auto" else tuple(devices), devices_per_job, slots)
