"""The run folder: the files that say what a run was told to do, what it did, and how it ended.

config.yaml        what was chosen, resolved except for references to the environment
environment.json   versions, commit, device
metrics.jsonl      one JSON object a line
preview.html       the first samples as the model sees them
bad_step.json      where a step's numbers were none: {step, reason, samples}
reference.jsonl    of trainer=dpo: the log-probabilities of each pair's answers when the run began
checkpoints/  final/  predictions/  tb/
completions/       of trainer=grpo: the completions of some steps, a parquet file a step
result.json        state, exit_code, reason, steps, seconds, train {...},
                   eval {base {metric: value}, tuned {metric: value}, p_value, tests {metric: {name, p_value}}, ...}
"""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vlmft.config.files import read_mapping
from vlmft.errors import ConfigError, InterruptedRunError, NumericError, PreemptedError, StorageError

RUNNING, DONE, FAILED, STOPPED, PREEMPTED = "running", "done", "failed", "stopped", "preempted"
PRUNED = "pruned"  # preempted by a search that had seen enough of it
PACKAGES = [
    "vlmft",
    "accelerate",
    "av",
    "bitsandbytes",
    "datasets",
    "decord",
    "deepspeed",
    "hydra-core",
    "numpy",
    "omegaconf",
    "peft",
    "pillow",
    "pydantic",
    "safetensors",
    "tokenizers",
    "torch",
    "torchvision",
    "transformers",
]


def state_of(exit_code: int) -> str:
    """Return the state of a run that ended with `exit_code`."""
    states = {0: DONE, PreemptedError.exit_code: PREEMPTED, InterruptedRunError.exit_code: STOPPED}
    return states.get(exit_code, FAILED)


class RunFolder:
    """The files of one run. Whoever writes result.json is alone at it: rank 0 while the ranks run, else the driver."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.fingerprint = path / "fingerprint.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.final = path / "final"
        self.predictions = path / "predictions"
        self.tb = path / "tb"
        self.completions = path / "completions"
        self.preview = path / "preview.html"
        self.bad_step = path / "bad_step.json"
        self.result = path / "result.json"

    def entries_kept_out(self) -> frozenset[str]:
        """Training entries whose system prompt comes from the environment: no file of a run holds such a value."""
        entries = read_mapping(self.config)["dataset"]
        return frozenset(name for name, entry in entries.items() if "${" in str(entry.get("system_prompt")))

    @classmethod
    def create(cls, path: str | Path, config_text: str) -> "RunFolder":
        """Make the folder of a new run and write its config.yaml.

        Raises:
            ConfigError: the folder holds a run already, or is a file.
            StorageError: it cannot be written.
        """
        folder = cls(_absolute(path))
        if folder.path.exists() and not folder.path.is_dir():
            raise ConfigError(f"run.dir={folder.path} is a file, not a folder; choose another run.dir")
        for taken in (folder.config, folder.result):
            if taken.exists():
                raise folder._taken(taken)
        with _storage(folder.path):
            folder.path.mkdir(parents=True, exist_ok=True)
        with _storage(folder.config):
            try:
                # "x": of two runs that start at once on one folder, one finds the file taken.
                file = folder.config.open("x", encoding="utf-8")
            except FileExistsError:
                raise folder._taken(folder.config) from None
            try:
                with file:
                    file.write(config_text)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                folder.config.unlink()  # half a file would say that a run is here
                raise
        return folder

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """Return the folder of a run that exists.

        Raises:
            ConfigError: there is no config.yaml in it.
        """
        folder = cls(_absolute(path))
        if not folder.config.is_file():
            raise ConfigError(f"{folder.path} is not a run folder: it has no {folder.config.name}")
        return folder

    @classmethod
    def wait_for(cls, path: str | Path, timeout_s: float) -> "RunFolder":
        """Return the folder once rank 0 has announced its run there; for the other ranks of a joined run.

        Announced means: result.json says `running`, which rank 0 writes (`start`) after config.yaml. An
        earlier run that has ended says something else and is not taken for it: where rank 0 refuses the
        folder, these ranks wait on and end with the error below, unless their launcher ends them first.
        An earlier run that was killed outright still says `running` and cannot be told apart here. Rank 0
        refuses that folder all the same, and these ranks, which write nothing to it, then wait for rank 0
        in torch's rendezvous until the launcher ends them (torchrun does at once) or it times out.

        Raises:
            ConfigError: rank 0 did not announce its run within `timeout_s` seconds.
        """
        folder = cls(_absolute(path))
        end = time.monotonic() + timeout_s
        while True:
            found = folder.read_result()
            if found.get("state") == RUNNING and folder.config.is_file():
                return folder
            if time.monotonic() >= end:
                held = f"it holds a run that is {found['state']!r}" if "state" in found else "it holds no run"
                raise ConfigError(
                    f"rank 0 did not open the run folder {folder.path} within {timeout_s:g} s ({held}); "
                    "see rank 0's own message, and give every rank the same run.dir, on storage that all of them share"
                )
            time.sleep(min(0.1, max(0.0, end - time.monotonic())))

    def checkpoint(self, step: int) -> Path:
        """Return the folder of the checkpoint after `step` optimiser steps."""
        return self.checkpoints / f"step-{step:08d}"

    def start(self, pid: int | None = None, host: str | None = None) -> None:
        """Say in result.json that the run is under way, in which process (this one by default) and since when."""
        self.write_result(
            state=RUNNING,
            exit_code=None,
            reason=None,
            host=host or socket.gethostname(),
            pid=pid or os.getpid(),
            started=_now(),
            ended=None,
        )
        with _storage(self.path):
            self.bad_step.unlink(missing_ok=True)
            self._clear_last_words()

    def finish(self, exit_code: int, reason: str, **fields: Any) -> None:
        """Say in result.json how the run ended; the state follows from the exit code.

        `seconds` since `start`, whichever process started, is added.
        """
        if started := self.read_result().get("started"):
            seconds = (datetime.now(UTC) - datetime.fromisoformat(started)).total_seconds()
            fields = {"seconds": round(seconds, 1), **fields}
        self.write_result(state=state_of(exit_code), exit_code=exit_code, reason=reason, ended=_now(), **fields)

    def settle(self, exit_code: int, reason: str, failed_rank: int | None) -> None:
        """For the driver, once the ranks are gone: have result.json say how the command ends.

        Rank 0 may have had no time to say anything, or may have lost another rank without knowing why.

        Args:
            reason: where the rank left no word of its own.
            failed_rank: the one whose end is the run's; None where none failed.
        """
        said = self.read_result().get("exit_code")
        if said != exit_code or (exit_code == 1 and failed_rank != 0):
            words = self._last_words(failed_rank)
            with contextlib.suppress(FileNotFoundError):
                reason = f"rank {failed_rank}: {words.read_text(encoding='utf-8')}"
            self.finish(exit_code, reason)
        with _storage(self.path):
            self._clear_last_words()

    def write_last_words(self, rank: int, reason: str) -> None:
        """Say, for the driver, why a rank other than 0 ends. Raises `StorageError` where that fails."""
        path = self._last_words(rank)
        with _storage(path):
            path.write_text(reason, encoding="utf-8")

    def _last_words(self, rank: int | None) -> Path:
        return self.path / f".rank-{rank}.reason"

    def _clear_last_words(self) -> None:
        for path in self.path.glob(".rank-*.reason"):
            path.unlink()

    def write_result(self, **fields: Any) -> None:
        """Merge `fields` into result.json: objects key by key, at every depth; anything else replaces what stood.

        A reader sees the old file or the new one, never a part.

        Raises:
            StorageError: the file cannot be written.
        """
        _write_json(self.result, _merged(self.read_result(), fields))

    def read_result(self) -> dict[str, Any]:
        """Return what result.json holds; {} where there is none.

        Raises:
            StorageError: the file is damaged or cannot be read.
        """
        try:
            found = json.loads(self.result.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StorageError(f"cannot read {self.result}: {error.strerror}") from error
        except ValueError as error:
            raise StorageError(f"{self.result} is damaged ({error}); choose another run.dir") from error
        if not isinstance(found, dict):
            raise StorageError(f"{self.result} is damaged (no JSON object); choose another run.dir")
        return found

    def write_environment(self, device: Mapping[str, Any] | None = None) -> None:
        """Write environment.json: versions, machine, commit and, where the caller knows it, the device.

        No value of an environment variable is among it.

        Raises:
            StorageError: the file cannot be written.
        """
        environment = {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpu_count": os.cpu_count(),
            "packages": {name: _version(name) for name in PACKAGES},
            "git": _checkout(Path(__file__).parent),
            "device": None if device is None else dict(device),
        }
        _write_json(self.environment, environment)

    def write_bad_step(self, error: NumericError) -> None:
        """Keep which samples the step was made of whose numbers were none. Raises `StorageError` where that fails."""
        _write_json(self.bad_step, {"step": error.step, "reason": str(error), "samples": list(error.samples)})

    def replace_config(self, config_text: str) -> None:
        """Put another config.yaml in place, for a run that is continued. Raises `StorageError` where that fails."""
        temporary = self.config.with_suffix(".partial")
        with _storage(temporary):
            temporary.write_text(config_text, encoding="utf-8")
            temporary.replace(self.config)

    def write_fingerprint(self, values: Mapping[str, Any]) -> None:
        """Write what the run's numbers depend on. Raises `StorageError` where that fails."""
        _write_json(self.fingerprint, values)

    def read_fingerprint(self) -> dict[str, Any]:
        """Return what `write_fingerprint` wrote.

        Raises:
            StorageError: the file is missing or damaged, so that the run cannot be continued.
        """
        try:
            found = json.loads(self.fingerprint.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StorageError(f"{self.fingerprint}: cannot be read ({error}); choose another run.dir") from error
        return dict(found)

    def cut_metrics(self, step: int) -> None:
        """Drop the lines of metrics.jsonl after `step`: a resumed run writes them again.

        Raises:
            StorageError: the file cannot be written.
        """
        if not self.metrics.is_file():
            return
        with _storage(self.metrics):
            lines = self.metrics.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= step]
            temporary = self.metrics.with_suffix(".partial")
            temporary.write_bytes(b"".join(kept))
            temporary.replace(self.metrics)

    def open_metrics(self) -> "MetricsWriter":
        """Open metrics.jsonl to append to it."""
        return MetricsWriter(self.metrics)

    def _taken(self, file: Path) -> ConfigError:
        return ConfigError(f"run.dir={self.path} holds a run already ({file.name} exists); choose another run.dir")


class MetricsWriter:
    """Appends to a metrics.jsonl, one JSON object a line; each line is with the system when `append` returns."""

    def __init__(self, path: Path) -> None:
        """Open `path`. A last line that a killed writer left unfinished is cut off.

        Raises:
            StorageError: the file cannot be written.
        """
        self.path = path
        with _storage(path):
            _cut_unfinished_line(path)
            # Unbuffered: after a failed write (disk full) nothing is left that close() would try to write again.
            self._file = path.open("ab", buffering=0)

    def append(self, values: Mapping[str, Any]) -> None:
        """Write `values`, plain Python values, as one line. NaN and infinities become null: JSON has neither.

        Raises:
            StorageError: the file cannot be written.
        """
        line = json.dumps(_without_nan(values), allow_nan=False, ensure_ascii=False).encode() + b"\n"
        with _storage(self.path):
            while line:
                line = line[self._file.write(line) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def _storage(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write beside `path`, then rename, so that no reader and no crash ever meets half a file."""
    text = json.dumps(_without_nan(values), allow_nan=False, ensure_ascii=False, indent=2) + "\n"
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _storage(path):
        try:
            with beside.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        stood = merged.get(key)
        merged[key] = _merged(stood, value) if isinstance(stood, Mapping) and isinstance(value, Mapping) else value
    return merged


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value


def _cut_unfinished_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("r+b") as file:
        whole = sum(len(line) for line in file if line.endswith(b"\n"))
        if whole < file.seek(0, os.SEEK_END):
            file.truncate(whole)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _checkout(package: Path) -> dict[str, Any] | None:
    """Return commit and dirtiness of the git checkout that tracks `package`, or None where none does."""
    # A wheel in the .venv of somebody's repository lies in a checkout, too, but is not tracked by it.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(package, "rev-parse", "HEAD")
    changes = _git(package, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None or changes is None else {"commit": commit, "dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    # Without optional locks: `status` must not write to a checkout that somebody is working in.
    command = [git, "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _absolute(path: str | Path) -> Path:
    return Path(path).expanduser().absolute()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
