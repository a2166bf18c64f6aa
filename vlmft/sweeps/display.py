"""What a pool of jobs shows while it works: a live table in a terminal, a line an event anywhere else."""

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlmft.config.pool import PoolJob
from vlmft.errors import StorageError
from vlmft.run_folder import RunFolder, state_of
from vlmft.screen import console
from vlmft.sweeps.slots import Slot

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

_REFRESH_S = 1.0
_TAIL = 64 * 1024  # bytes of metrics.jsonl in which its last line is looked for


@dataclass
class _Row:
    job: PoolJob
    slot: Slot
    since: float
    state: str = "running"
    seconds: float | None = None


class Display:
    """Lines: one when a job starts and one when it ends."""

    def __init__(self, screen: "Console", waiting: int | None) -> None:
        self.screen = screen
        self.waiting = waiting

    def started(self, job: PoolJob, slot: Slot) -> None:
        """A job has begun."""
        self.waiting = None if self.waiting is None else self.waiting - 1
        self.say(f"job {job.number} started on {slot.name}: {_choices(job)}")

    def ended(self, job: PoolJob, exit_code: int, reason: str, seconds: float) -> None:
        """A job has ended."""
        with contextlib.suppress(StorageError):  # the table at the end says what is wrong with the file
            reason = reason or str(RunFolder(job.folder).read_result().get("reason") or "")
        why = f": {reason.splitlines()[0]}" if exit_code and reason else ""
        self.say(f"job {job.number} {state_of(exit_code)} after {seconds:.0f} s{why}")

    def stopping(self, signal_name: str, running: int) -> None:
        """A signal is being passed on."""
        self.say(f"{signal_name}: passed on to {running} jobs; no further one is started")

    def refresh(self) -> None:
        """Called several times a second."""

    def say(self, line: str) -> None:
        """Print a line, as it is."""
        self.screen.print(line, markup=False)


class LiveDisplay(Display):
    """A table of all jobs that began, drawn anew each second."""

    def __init__(self, screen: "Console", waiting: int | None, live: "Live") -> None:
        super().__init__(screen, waiting)
        self.live = live
        self.rows: dict[int, _Row] = {}
        self.drawn = 0.0

    def started(self, job: PoolJob, slot: Slot) -> None:
        """A row more."""
        self.waiting = None if self.waiting is None else self.waiting - 1
        self.rows[job.number] = _Row(job, slot, time.monotonic())

    def ended(self, job: PoolJob, exit_code: int, reason: str, seconds: float) -> None:
        """The row says how; a failure is a line above the table, too."""
        self.rows[job.number].state, self.rows[job.number].seconds = state_of(exit_code), seconds
        if exit_code:
            super().ended(job, exit_code, reason, seconds)
        self.drawn = 0.0

    def refresh(self) -> None:
        """Draw, once a second."""
        if time.monotonic() - self.drawn >= _REFRESH_S:
            self.drawn = time.monotonic()
            self.live.update(self.table(), refresh=True)

    def table(self) -> "Table":
        """Every job that began: where it runs, how far it is."""
        from rich.markup import escape
        from rich.table import Table

        waiting = f", {self.waiting} waiting" if self.waiting is not None else ""
        table = Table(title=f"jobs{waiting}", title_justify="left")
        for head in ("job", "choices", "state", "on", "step", "loss", "seconds"):
            left = head in ("choices", "state", "on")
            table.add_column(head, justify="left" if left else "right", no_wrap=head == "choices", overflow="ellipsis")
        for number, row in sorted(self.rows.items()):
            step, loss = _progress(row.job)
            seconds = time.monotonic() - row.since if row.seconds is None else row.seconds
            on = row.slot.name if row.seconds is None else ""
            table.add_row(str(number), escape(_choices(row.job)), row.state, on, step, loss, f"{seconds:.0f}")
        return table


@contextlib.contextmanager
def make_display(slots: Sequence[Slot], waiting: int | None) -> Iterator[Display]:
    """The display that suits stdout, for as long as the body runs."""
    screen = console()
    jobs = "jobs" if waiting is None else f"{waiting} jobs"
    screen.print(f"pool     {jobs} on {len(slots)} x {slots[0].name.split()[0]}", markup=False)
    if not screen.is_terminal:
        yield Display(screen, waiting)
        return
    from rich.live import Live

    with Live(console=screen, auto_refresh=False) as live:
        display = LiveDisplay(screen, waiting, live)
        yield display
        live.update(display.table(), refresh=True)


def _choices(job: PoolJob) -> str:
    return " ".join(word for word in job.overrides if not word.startswith("run.dir="))


def _progress(job: PoolJob) -> tuple[str, str]:
    """Step and loss of the last line that has a loss."""
    try:
        with RunFolder(job.folder).metrics.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL))
            lines = file.read().splitlines()
    except OSError:
        return "-", "-"
    for line in reversed(lines):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            found = json.loads(line)
            return str(found["step"]), f"{found['loss']:.3f}"
    return "-", "-"
