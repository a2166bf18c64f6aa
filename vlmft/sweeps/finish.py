"""A sweep's end: what its jobs came to, on the screen and as summary.csv and summary.png in its folder."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vlmft.errors import StorageError, VlmftError
from vlmft.run_folder import FAILED
from vlmft.screen import console
from vlmft.sweeps.runs import RunRecord, read_job, read_jobs, write_jobs
from vlmft.sweeps.table import WIDTH, all_done, csv_text, screen_table

if TYPE_CHECKING:
    from vlmft.config.sweep import JobRecord


def finish_sweep(folder: Path, jobs: "Sequence[JobRecord]") -> None:
    """Write down how the jobs ended, and show them all: those of an earlier start of the same folder, too.

    A job whose own files are damaged gets a row that says so.

    Raises:
        DataError: the sweep's record of an earlier start is damaged.
        StorageError: a file cannot be written.
    """
    known = read_jobs(folder)
    for job in jobs:
        known[job.number] = {
            "overrides": list(job.overrides),
            "exit_code": job.exit_code,
            "reason": job.reason,
        }
    try:
        write_jobs(folder, known)
        records = [_read_leniently(folder, number, known[number]) for number in sorted(known)]
        write_summary(folder, records)
    except OSError as error:
        raise StorageError(f"{error.filename or folder}: cannot be written: {error.strerror or error}") from error
    console(width=WIDTH).print(screen_table(records, f"sweep {folder}"))
    if not all_done(records):
        sys.stdout.write(f"the same command with run.dir={folder} runs what is missing\n")


def write_summary(folder: Path, records: Sequence[RunRecord]) -> None:
    """Write summary.csv and summary.png, each beside first, then renamed. Raises `OSError`."""
    from vlmft.sweeps.curves import draw, loss_figure

    files = {"summary.csv": csv_text(records).encode(), "summary.png": draw(loss_figure(records), "png")}
    for name, content in files.items():
        beside = folder / f".{name}.tmp"
        beside.write_bytes(content)
        beside.replace(folder / name)


def _read_leniently(folder: Path, number: int, job: dict[str, object]) -> RunRecord:
    try:
        return read_job(folder, number, job)
    except VlmftError as error:
        sys.stderr.write(f"error: {error}\n")
        words = job["overrides"]
        assert isinstance(words, list)
        record = RunRecord(str(number), folder / str(number), FAILED, str(error), error.exit_code)
        return replace(record, overrides=tuple(words))
