"""Jobs of a sweep beside each other on this machine: a queue, a place for each, one command a job.

Each job leads a session of its own, so Ctrl-C in a terminal reaches this process alone, which passes it on. A job is
bound to this process as ranks are bound to their driver: however this process ends, none is left behind.
"""

import contextlib
import os
import queue
import shlex
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from datetime import UTC, datetime

from vlmft import lock
from vlmft.config.pool import JobEnded, PoolJob, PoolSettings, StopEarly
from vlmft.errors import InterruptedRunError, PreemptedError, StorageError
from vlmft.launch import ECHO_S, Signalled, bond, signals_into
from vlmft.run_folder import RunFolder
from vlmft.sweeps.display import Display, make_display
from vlmft.sweeps.slots import Slot, make_slots

LOG = "log.txt"
"""In a job's folder: what its command printed."""

_LOOK_EVERY_S = 0.2
_ASK_EVERY_S = 1.0
# A job's driver ends its ranks by itself, in strategy.shutdown_timeout_s; this is for a driver that hangs.
_BOND_TIMEOUT_S = 3600.0


def run_jobs(
    jobs: Iterable[PoolJob], settings: PoolSettings, ended: JobEnded, stop_early: StopEarly | None = None
) -> None:
    """Run `jobs`, as many at a time as there are places, taking the next one only when there is room for it.

    SIGTERM, SIGINT and SIGUSR1 are passed on to all that run, and no further one is started; a second one lets them
    end at once, a third kills. A job that ends in any way leaves the others alone.

    Raises:
        ConfigError: the settings ask for what is not there.
        StorageError: a job's folder cannot be made.
        InterruptedRunError, PreemptedError: a signal ended it.
    """
    slots = make_slots(settings)
    events: queue.SimpleQueue[object] = queue.SimpleQueue()
    with signals_into(events), make_display(slots, len(jobs) if isinstance(jobs, Sized) else None) as display:
        pool = _Pool(slots, events, display, ended, stop_early)
        try:
            pool.run(iter(jobs))
        finally:
            pool.clear()
    if pool.received is not None:
        error = InterruptedRunError if pool.received is signal.SIGINT else PreemptedError
        raise error(f"the sweep was stopped by {pool.received.name}; the same run.dir goes on with it")


@dataclass
class _Running:
    job: PoolJob
    slot: Slot
    child: "subprocess.Popen[bytes]"
    since: float  # time.monotonic, in seconds
    log_begins: int  # bytes of earlier starts in the log
    asked: float
    returncode: int | None = None


class _Pool:
    def __init__(
        self,
        slots: list[Slot],
        events: "queue.SimpleQueue[object]",
        display: Display,
        ended: JobEnded,
        stop_early: StopEarly | None,
    ) -> None:
        self.free = list(slots)
        self.events = events
        self.display = display
        self.ended = ended
        self.stop_early = stop_early
        self.running: list[_Running] = []
        self.received: signal.Signals | None = None
        self.signalled_at: list[float] = []
        self.pipe = os.pipe()  # its writing end is closed when this process ends, however it does

    def run(self, jobs: Iterator[PoolJob]) -> None:
        waiting = True
        while waiting or self.running:
            while waiting and self.free and self.received is None:
                job = next(jobs, None)
                if job is None:
                    waiting = False
                    break
                self._start(job)
            waiting = waiting and self.received is None
            if not self.running:
                continue
            with contextlib.suppress(queue.Empty):
                event = self.events.get(timeout=_LOOK_EVERY_S)
                if isinstance(event, Signalled):
                    self._on_signal(event)
            for running in list(self.running):
                self._look(running)
            self.display.refresh()

    def clear(self) -> None:
        """Leave no job behind where an error cut the waiting short."""
        for running in self.running:
            self._send(running, signal.SIGTERM)
        until = time.monotonic() + 2 * ECHO_S
        for running in self.running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.child.wait(timeout=max(0.0, until - time.monotonic()))
        os.close(self.pipe[1])
        os.close(self.pipe[0])

    def _start(self, job: PoolJob) -> None:
        slot = self.free.pop(0)
        path = job.folder / LOG
        try:
            job.folder.mkdir(parents=True, exist_ok=True)
            log = path.open("ab")
        except OSError as error:
            raise StorageError(f"{path}: cannot be written: {error.strerror}") from error
        with log:
            begins = log.tell()
            log.write(f"# {datetime.now(UTC).isoformat(timespec='seconds')} {shlex.join(job.command[1:])}\n".encode())
            log.flush()
            child = subprocess.Popen(
                job.command,
                env={**os.environ, **slot.environment, **bond(self.pipe[0], _BOND_TIMEOUT_S)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=self.pipe[:1],
            )
        now = time.monotonic()
        self.running.append(_Running(job, slot, child, now, begins, asked=now))
        self.display.started(job, slot)

    def _look(self, running: _Running) -> None:
        if running.returncode is None:
            running.returncode = running.child.poll()
        if running.returncode is None:
            now = time.monotonic()
            if self.stop_early is not None and self.received is None and now - running.asked >= _ASK_EVERY_S:
                running.asked = now
                if self.stop_early(running.job):
                    running.asked = float("inf")  # told once: a second signal would end it without a checkpoint
                    self._send(running, signal.SIGTERM)
            return
        # Ranks that outlive a killed driver still hold the device, for the seconds of their last checkpoint.
        if running.returncode < 0 and lock.is_held(running.job.folder, lock.RANK):
            return
        self.running.remove(running)
        self.free.append(running.slot)
        code, reason = self._judge(running, running.returncode)
        self.display.ended(running.job, code, reason, time.monotonic() - running.since)
        self.ended(running.job, code, reason)

    def _judge(self, running: _Running, returncode: int) -> tuple[int, str]:
        """Exit code and reason; the reason is empty where the job's result.json says it."""
        if returncode < 0:
            number = signal.Signals(-returncode)
            if self.signalled_at and number in (signal.SIGTERM, signal.SIGINT):  # before it had a handler
                interrupted = number is signal.SIGINT
                code = (InterruptedRunError if interrupted else PreemptedError).exit_code
                return code, f"stopped by {number.name} before it began"
            return 128 + number, f"its driver was killed by {number.name}"
        if returncode == 0:
            return 0, ""
        with contextlib.suppress(StorageError):
            if RunFolder(running.job.folder).read_result().get("exit_code") == returncode:
                return returncode, ""
        return returncode, "\n".join(_errors(running)) or f"exit code {returncode}; see {running.job.folder / LOG}"

    def _on_signal(self, event: Signalled) -> None:
        if self.signalled_at and event.at - self.signalled_at[-1] < ECHO_S:
            return
        self.signalled_at.append(event.at)
        self.received = self.received or event.signal
        self.display.stopping(event.signal.name, len(self.running))
        for running in self.running:
            if len(self.signalled_at) < 3:
                self._send(running, event.signal)
            else:
                self._send(running, signal.SIGKILL)

    def _send(self, running: _Running, number: signal.Signals) -> None:
        running.child.send_signal(number)


def _errors(running: _Running) -> list[str]:
    """The errors that this start of a job printed."""
    with (running.job.folder / LOG).open("rb") as log:
        log.seek(running.log_begins)
        lines = log.read().decode(errors="replace").splitlines()
    return [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
