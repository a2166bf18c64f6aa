"""What a finished, failed or running run has left in its folder, read for comparison with others."""

import json
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vlmft.errors import ConfigError, DataError
from vlmft.run_folder import DONE, FAILED, RUNNING, RunFolder

JOBS = "sweep.json"
"""In a sweep's folder: which jobs there were, what each chose, and how its command ended."""

WINDOW_SHARE = 20
"""Losses are smoothed by the mean of the last 1/20 of the run's steps."""


@dataclass(frozen=True)
class Score:
    """A metric on held-out samples with its 95 % interval, as far as it is known."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class RunRecord:
    """One run, as tables and pictures show it; what is not known is None or empty."""

    name: str
    folder: Path
    state: str
    reason: str = ""
    """Why it ended so; empty where it is done or running."""
    exit_code: int | None = None
    overrides: tuple[str, ...] = ()
    """The words of the command line that chose it."""
    seconds: float | None = None
    steps: int | None = None
    parameters: int | None = None
    trainable_parameters: int | None = None
    peak_memory_bytes: int | None = None
    base: Mapping[str, Score] = field(default_factory=dict)
    tuned: Mapping[str, Score] = field(default_factory=dict)
    losses: tuple[tuple[int, float], ...] = ()
    """(step, loss), in the order of the steps."""
    evals: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    """Metric -> (step, value) where the run was judged while it trained, its end included."""
    final_loss: float | None = None
    """That of the last step."""

    @property
    def smoothed(self) -> tuple[tuple[int, float], ...]:
        """(step, mean loss of the last 1/20 of the logged steps); the first ones, with fewer before them, left out."""
        values = [loss for _, loss in self.losses]
        width = max(1, len(values) // WINDOW_SHARE)
        return tuple(
            (self.losses[end - 1][0], sum(values[end - width : end]) / width) for end in range(width, len(values) + 1)
        )

    @property
    def smoothed_loss(self) -> float | None:
        """The smoothed loss at the end."""
        return self.smoothed[-1][1] if self.losses else None

    @property
    def mean_loss(self) -> float | None:
        """The area under the loss curve, divided by its length: small where a run learned early."""
        return sum(loss for _, loss in self.losses) / len(self.losses) if self.losses else None

    def steps_to(self, level: float) -> int | None:
        """The first step whose smoothed loss is at most `level`; None where none is."""
        return next((step for step, loss in self.smoothed if loss <= level), None)


def read_run(path: Path, name: str | None = None) -> RunRecord:
    """Read a run's folder.

    Raises:
        ConfigError: it is none.
        DataError: a line of its metrics.jsonl is damaged.
        StorageError: its result.json is damaged.
    """
    folder = RunFolder.open(path)
    result = folder.read_result()
    lines = list(read_metrics(folder.metrics))
    losses = tuple((int(line["step"]), float(line["loss"])) for line in lines if line.get("loss") is not None)
    scores = result.get("eval", {})
    state, reason = result.get("state", FAILED), result.get("reason") or ""
    if state == RUNNING and _is_gone(result):
        state, reason = FAILED, f"its process {result['pid']} is gone without a word; the same command goes on with it"
    return RunRecord(
        name=name or folder.path.name,
        folder=folder.path,
        state=state,
        reason="" if state in (DONE, RUNNING) else reason or "it ended before its first word",
        exit_code=result.get("exit_code"),
        overrides=tuple(result.get("overrides", ())),
        seconds=result.get("seconds"),
        steps=result.get("steps", losses[-1][0] if losses else None),
        parameters=result.get("parameters"),
        trainable_parameters=result.get("trainable_parameters"),
        peak_memory_bytes=result.get("peak_memory_bytes"),
        base=_scores(scores, "base"),
        tuned=_scores(scores, "tuned"),
        losses=losses,
        evals=_evals(lines),
        final_loss=result.get("train", {}).get("loss", losses[-1][1] if losses else None),
    )


def read_sweep(folder: Path) -> list[RunRecord]:
    """Read the jobs of a sweep's folder, by number; a job that never became a run is among them.

    Raises:
        ConfigError: there is no such folder, or no job in it.
        DataError: a metrics.jsonl or the sweep's own record is damaged.
        StorageError: a result.json is damaged.
    """
    folder = folder.expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder")
    known = read_jobs(folder)
    numbered = (path for path in folder.iterdir() if path.name.isdecimal())
    started = {int(path.name) for path in numbered if RunFolder(path).config.is_file()}
    if not known and not started:
        raise ConfigError(f"{folder}: holds neither a run (config.yaml) nor a sweep's jobs (0/config.yaml, ...)")
    return [read_job(folder, number, known.get(number)) for number in sorted(known.keys() | started)]


def read_job(sweep: Path, number: int, job: Mapping[str, Any] | None) -> RunRecord:
    """Read one job; `job` is what the sweep wrote down of it: overrides, exit_code and reason."""
    path = sweep / str(number)
    record = read_run(path) if RunFolder(path).config.is_file() else RunRecord(str(number), path, FAILED)
    if job is None:
        return record
    record = replace(record, overrides=tuple(job["overrides"]))
    # A job may fail without a word in its folder: refused, or its driver killed. Not where it was continued since.
    silent = record.state in (DONE, FAILED) and job["exit_code"] not in (0, record.exit_code)
    if silent and _changed(RunFolder(path).result) <= _changed(sweep / JOBS):
        reason = job["reason"] or record.reason or f"exit code {job['exit_code']}"
        return replace(record, state=FAILED, exit_code=job["exit_code"], reason=reason)
    return record


def read_jobs(sweep: Path) -> dict[int, dict[str, Any]]:
    """What a sweep wrote down of its jobs, by number; {} where it did not come to that.

    Raises:
        DataError: the file is damaged.
    """
    path = sweep / JOBS
    if not path.is_file():
        return {}
    try:
        jobs = json.loads(path.read_text(encoding="utf-8"))["jobs"]
        return {
            int(job["number"]): {
                "overrides": [str(word) for word in job["overrides"]],
                "exit_code": int(job["exit_code"]),
                "reason": str(job["reason"]),
            }
            for job in jobs
        }
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: is damaged ({type(error).__name__}: {error}); remove it: the jobs' own folders say the rest"
        ) from None


def write_jobs(sweep: Path, jobs: Mapping[int, Mapping[str, Any]]) -> None:
    """Write down `jobs`, beside first, then renamed. Raises `OSError`."""
    text = json.dumps({"jobs": [{"number": number} | dict(jobs[number]) for number in sorted(jobs)]}, indent=2)
    beside = sweep / f".{JOBS}.tmp"
    beside.write_text(text + "\n", encoding="utf-8")
    beside.replace(sweep / JOBS)


def named_apart(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Runs of several folders, each with as much of its path as tells it from the others."""
    depth = 1
    while depth < 8 and len({_tail(record.folder, depth) for record in records}) < len(records):
        depth += 1
    return [replace(record, name=_tail(record.folder, depth)) for record in records]


def chosen(overrides: Iterable[str]) -> dict[str, str]:
    """Overrides as key -> value; `++key=value` is the key, `~key` a key without a value."""
    pairs = (override.partition("=") for override in overrides)
    return {key.lstrip("+"): value for key, _, value in pairs}


def differing(records: Sequence[RunRecord]) -> list[str]:
    """The keys that were not chosen alike in all runs, in the order in which they were typed; of a single run, all."""
    choices = [chosen(record.overrides) for record in records]
    keys = list(dict.fromkeys(key for choice in choices for key in choice if key != "run.dir"))
    if len(choices) < 2:
        return keys
    return [key for key in keys if len({choice.get(key) for choice in choices}) > 1]


def label(record: RunRecord, keys: Iterable[str]) -> str:
    """What this run chose for `keys`."""
    values = chosen(record.overrides)
    return " ".join(f"{key}={values[key]}" for key in keys if key in values)


def common_level(records: Iterable[RunRecord]) -> float | None:
    """The lowest smoothed loss that every finished run has reached: by it one sees which got there first."""
    lowest = [min(loss for _, loss in record.smoothed) for record in records if record.state == DONE and record.losses]
    return max(lowest) if lowest else None


def fastest(records: Iterable[RunRecord], level: float | None) -> RunRecord | None:
    """The run that reaches `level` in the fewest steps; of several, that with the least area under its curve."""
    if level is None:
        return None
    reached = [(steps, r.mean_loss, r) for r in records if (steps := r.steps_to(level)) is not None]
    return min(reached, key=lambda item: item[:2])[2] if reached else None


def best(records: Sequence[RunRecord]) -> RunRecord | None:
    """The finished run with the highest score of the first metric; where none is, with the lowest smoothed loss."""
    done = [record for record in records if record.state == DONE]
    scored = [record for record in done if record.tuned]
    if scored:
        metric = next(iter(scored[0].tuned))
        scored = [record for record in scored if metric in record.tuned]
        return max(scored, key=lambda record: (record.tuned[metric].value, -(record.smoothed_loss or 0)))
    ended = [record for record in done if record.smoothed_loss is not None]
    return min(ended, key=lambda record: record.smoothed_loss or 0) if ended else None


def read_metrics(path: Path) -> Iterable[dict[str, Any]]:
    """The whole lines of a metrics.jsonl. Raises `DataError` at a damaged one."""
    if not path.is_file():
        return
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            return  # the run is writing it, or was killed while it did
        try:
            found = json.loads(line)
            if not isinstance(found["step"], int):
                raise TypeError("step is no number")
            float(found.get("loss") or 0)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}:{number}: is damaged: should be a JSON object with a step ({error}); found {line[:60]!r}. "
                "Mend or remove the line"
            ) from None
        yield found


def _evals(lines: Iterable[Mapping[str, Any]]) -> dict[str, tuple[tuple[int, float], ...]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for key, value in line.items():
            if key.startswith("eval/") and isinstance(value, int | float):
                found.setdefault(key.removeprefix("eval/"), []).append((line["step"], float(value)))
    return {metric: tuple(points) for metric, points in found.items()}


def _scores(scores: Mapping[str, Any], which: str) -> dict[str, Score]:
    intervals = scores.get("intervals", {}).get(which, {})
    return {metric: Score(value, *intervals.get(metric, ())) for metric, value in scores.get(which, {}).items()}


def _changed(path: Path) -> float:
    """When a file was written, in seconds since the epoch; 0 where there is none."""
    return path.stat().st_mtime if path.exists() else 0.0


def _is_gone(result: Mapping[str, Any]) -> bool:
    if result.get("host") != socket.gethostname() or not isinstance(result.get("pid"), int):
        return False
    try:
        os.kill(result["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _tail(path: Path, depth: int) -> str:
    return "/".join(path.parts[-depth:])
