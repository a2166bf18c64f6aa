"""From the command line to checked specs: the one entry that every command calls.

Hydra composes, this module checks, and the command's `job` receives plain typed objects. Whatever goes wrong on
the way ends as lines on stderr and an exit code; a traceback is shown only for a fault of the program.
"""

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from hydra import version
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vlmft.config import pool, search
from vlmft.config.files import read_mapping
from vlmft.config.messages import explain
from vlmft.config.portable import escape, resolve
from vlmft.config.registry import load_registry
from vlmft.config.roots import activate, find_roots
from vlmft.config.source import GROUPS, serve
from vlmft.config.sweep import JobRecord, SweepFolder, folder_given, given_overrides, run_folder
from vlmft.errors import ConfigError, InterruptedRunError, PreemptedError, VlmftError

if TYPE_CHECKING:  # --help and --cfg do without pydantic (75 ms)
    from vlmft.config.spec import Spec

S = TypeVar("S", bound="Spec")

# With this set to 1 Hydra raises its errors, where it would otherwise print them and exit with 1.
_FULL_ERROR = "HYDRA_FULL_ERROR"
_KEPT = -1  # no exit code: the job is to be run later
_ENDS_SWEEP = (InterruptedRunError.exit_code, PreemptedError.exit_code)


@dataclass(frozen=True)
class Composition:
    """What a command needs to know about a composed config beside its values."""

    portable: str
    """The config as YAML, resolved except for references to the environment: no variable's value is in it."""
    overrides: tuple[str, ...]
    """The words of the command line that chose this job, a sweep's expanded."""
    run_dir: Path
    """`run.dir`, absolute; in a sweep the job's own folder. Not made yet. Where a config has no run.dir: here."""
    choices: dict[str, str]
    """Group -> chosen option."""
    sweep_job: int | None
    """The job's number in its sweep; None outside one."""
    run_dir_given: bool
    """Whether the user named the folder (`run.dir=`)."""


def run_app(
    config_name: str,
    schema: "type[S]",
    job: "Callable[[S, Composition], int]",
    sweep_done: Callable[[Path, list[JobRecord]], None] | None = None,
    argv: Sequence[str] | None = None,
    home: Path | None = None,
    run_jobs: pool.RunJobs | None = None,
    run_search: search.RunSearch | None = None,
) -> int:
    """Compose `config_name` by the command line, check it against `schema`, run `job` on it; return the exit code.

    In a sweep (`-m`) a job that fails is recorded and the next one starts, except after an interrupt or a
    preemption, which end the sweep. Then `sweep_done` gets the sweep's folder and the records, and the exit code
    is that of the interrupt, or else of the first job that failed. With `hydra/launcher=pool` the jobs of a sweep are
    commands of their own, which `run_jobs` runs beside each other; with `hydra/sweeper=optuna`, `run_search` chooses
    them. `home` stands in for the built-in root.

    Nothing is raised: each problem is a line `error: ...` on stderr.
    """
    runner = _Runner(config_name, schema, job)
    pool.register(run_jobs)
    search.register(run_search)
    composing = _exit_code(lambda: _compose_and_run(config_name, runner, argv, home))
    if not runner.records:
        runner.sweep.remove_if_unused()
        return composing
    runner.records.sort(key=lambda record: record.number)
    codes = [*(record.exit_code for record in runner.records), composing]
    folder = runner.sweep.folder
    if folder is not None and sweep_done is not None and runner.is_sweep:
        codes.append(_exit_code(lambda: sweep_done(folder, runner.records)))
    return next((code for code in codes if code in _ENDS_SWEEP), None) or next((code for code in codes if code), 0)


def load_config(path: Path, schema: "type[S]", home: Path | None = None) -> S:
    """Read a run folder's `config.yaml` and check it; what it refers to is asked of this process's environment.

    Raises:
        ConfigError: lists what is wrong with the file, the roots or a value, and each variable that is not set.
    """
    activate(find_roots(home))
    specs, _ = _check(schema, OmegaConf.create(read_mapping(path)))
    return specs


class _SweepEnded(BaseException):
    """Leaves Hydra's loop over jobs. No Exception: Hydra keeps those and starts the next job."""


class _Runner(Generic[S]):
    """What Hydra calls with each composed config."""

    def __init__(self, config_name: str, schema: type[S], job: Callable[[S, Composition], int]) -> None:
        self.config_name, self.schema, self.job = config_name, schema, job
        self.config_dir: str | None = None
        self.is_sweep = False  # a job of a pool has a number, too
        self.kept: list[pool.PoolJob] | None = None
        self.sweep = SweepFolder()
        self.records: list[JobRecord] = []
        self.users_full_error = os.environ.get(_FULL_ERROR)

    def __call__(self, cfg: DictConfig) -> None:
        hydra: Any = HydraConfig.get()
        self.is_sweep = hydra.mode == RunMode.MULTIRUN
        overrides = given_overrides(hydra)
        number = None if OmegaConf.is_missing(hydra.job, "num") else int(hydra.job.num)
        run_dir = Path.cwd()
        if number is not None:
            self.sweep.folder = self.sweep.folder or Path(hydra.sweep.dir).absolute()
            run_dir = self.sweep.folder / str(number)

        def check_and_run() -> int:
            nonlocal run_dir
            choices = _choices(hydra, cfg)
            named = run_folder(cfg)
            if named is not None:
                run_dir = named if number is None else run_dir
                cfg.run.dir = escape(str(run_dir))
            specs, portable = _check(self.schema, cfg)
            given = folder_given(overrides) is not None
            if self.kept is not None and number is not None:
                command = pool.job_command(self.config_name, hydra, run_dir.parent, number, self.config_dir)
                self.kept.append(pool.PoolJob(number, overrides, run_dir, command))
                return _KEPT
            return self.job(specs, Composition(portable, overrides, run_dir, choices, number, given))

        said: list[str] = []
        with _variable(_FULL_ERROR, self.users_full_error):
            code = _exit_code(check_and_run, said)
        if code == _KEPT:
            return
        self.records.append(JobRecord(number or 0, overrides, run_dir, code, "\n".join(said)))
        if code in _ENDS_SWEEP:
            raise _SweepEnded

    def keep(self, compose: Callable[[], object]) -> list[pool.PoolJob]:
        """Return the jobs that Hydra composes and that are in order, without running them."""
        self.kept = []
        try:
            compose()
            return self.kept
        finally:
            self.kept = None

    def ended(self, job: pool.PoolJob, exit_code: int, reason: str) -> None:
        """Record how a job ended that was a command of its own."""
        self.records.append(JobRecord(job.number, job.overrides, job.folder, exit_code, reason))


def _compose_and_run(config_name: str, runner: "_Runner[S]", argv: Sequence[str] | None, home: Path | None) -> None:
    parser = get_args_parser()
    parser.prog = f"python -m vlmft.{config_name}"
    args = parser.parse_args(argv)
    if args.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun: is not supported, as it would load a pickle")
    runner.config_dir = args.config_dir
    roots = find_roots(home)
    activate(roots)
    serve(roots, load_registry(roots))
    runner.sweep.register()
    version.setbase("1.3")
    try:
        with _variable(_FULL_ERROR, "1"):
            _run_hydra(args, parser, runner, config_path=str(roots[0].conf), config_name=config_name)
    except _SweepEnded:
        pass
    except Exception as error:
        known = explain(error)
        if known is None:
            raise
        if runner.users_full_error == "1":
            traceback.print_exc()
        raise known from None


def _check(schema: type[S], cfg: DictConfig) -> tuple[S, str]:
    """Return the specs and the portable text. Raises `ConfigError` with every problem, none showing a secret."""
    from vlmft.config.spec import validate

    resolved = resolve(cfg)
    try:
        return validate(schema, resolved.values), resolved.text
    except ConfigError as error:
        raise ConfigError(*map(resolved.redact, error.problems)) from None


def _choices(hydra: Any, cfg: DictConfig) -> dict[str, str]:
    chosen = hydra.runtime.choices.items()
    choices = {str(group): str(option) for group, option in chosen if not str(group).startswith("hydra/")}
    # Hydra merges the members of a list, which would hide an entry that is chosen twice, and reports no choice.
    ConfigError.raise_if(
        f"{group}: should be one expression such as {group}=A+B, not a list"
        for group in GROUPS
        if group in cfg and group not in choices
    )
    return choices


def _exit_code(action: Callable[[], int | None], said: list[str] | None = None) -> int:
    """Run `action`, print what it raises, add it to `said`, and return the exit code that this means."""
    said = [] if said is None else said
    try:
        return action() or 0
    except VlmftError as error:
        said.extend(error.problems)
        for problem in error.problems:
            sys.stderr.write(f"error: {problem}\n")
        return error.exit_code
    except KeyboardInterrupt:
        said.append("interrupted")
        sys.stderr.write("error: interrupted\n")
        return InterruptedRunError.exit_code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:
        said.append(f"{type(error).__name__}: {error}")
        traceback.print_exc()
        return 1


@contextmanager
def _variable(name: str, value: str | None) -> Iterator[None]:
    """Set an environment variable, or unset it, for a while."""
    before = os.environ.get(name)
    _set_variable(name, value)
    try:
        yield
    finally:
        _set_variable(name, before)


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
