"""The ranks of this machine as child processes: started together, told of signals, ended together.

Each rank leads a session of its own. Ctrl-C in a terminal therefore reaches the driver alone, which
passes it on once; and a rank's whole family (data-loader workers) is one process group that can be
ended with it.
"""

import contextlib
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from vlmft.errors import (
    ConfigError,
    InterruptedRunError,
    NumericError,
    OutOfMemoryError,
    PreemptedError,
    StorageError,
)

ECHO_S = 0.5
"""Signals closer together than this are one request: `timeout` and wrappers of its kind signal a
process and then its group, so that the driver hears one request twice."""
LONE_S = 5.0
"""What the other ranks get to leave by themselves once one has left on request. Ranks that agreed to leave do so
together; those that heard of no request are then given one."""

_LEFT_ON_REQUEST = (PreemptedError.exit_code, InterruptedRunError.exit_code)
_CAUSES = tuple(error.exit_code for error in (ConfigError, NumericError, OutOfMemoryError, StorageError))
_LOST_PEER = (1, 128 + signal.SIGABRT, 128 + signal.SIGTERM)  # gloo's error, NCCL's abort, our word without a handler
_BOND = "VLMFT_DRIVER_PIPE"  # "<file descriptor>:<shutdown_timeout_s>"


@dataclass(frozen=True)
class RanksExit:
    """How the ranks ended. `failed_rank` is None where every one ended with 0."""

    exit_code: int
    failed_rank: int | None
    reason: str
    signal_received: signal.Signals | None = None
    """The first signal that the driver passed on, if any."""


def run_ranks(command: Sequence[str], ranks: int, env: Mapping[str, str], shutdown_timeout_s: float) -> RanksExit:
    """Run `command` once a rank and wait until every rank, and every process it started, is gone.

    The command must start the rank itself, without a shell between. `env` is added to this process's
    environment; RANK, WORLD_SIZE and their like are added to that. SIGTERM, SIGINT and SIGUSR1 are
    passed on to the ranks (not to their loader workers, which their parent ends), and so is SIGHUP, as
    SIGTERM, unless it is ignored (nohup). What is still there `shutdown_timeout_s` seconds later is
    killed; a second SIGTERM or SIGINT kills at once. Outside the main thread no signal can be caught,
    so none is passed on.

    Exit codes pass through; death by signal n counts as 128+n. A rank that ends with anything but 0
    ends the others, and the first such rank gives the result, with two exceptions: a later rank that
    states a cause (codes 2 to 5) replaces one that does not, since losing its peers makes a rank fail
    with 1 before the true culprit has left; and a failure replaces 75 and 130, the codes of leaving on
    request, unless it may come of the loss of that rank, which may have been asked alone: then the others
    fail as they miss it, or get a SIGTERM after `LONE_S`. A rank that a passed-on signal killed before it
    had a handler counts as 75, or 130 for SIGINT; one killed by the second signal counts as 128+n of that
    signal.

    Raises:
        OSError: the command cannot be started.
    """
    events: queue.SimpleQueue[Signalled | _Ended] = queue.SimpleQueue()
    with signals_into(events):
        group = _Ranks(events, shutdown_timeout_s)
        try:
            group.start(command, ranks, {**os.environ, **env})
            return group.wait()
        finally:
            group.clear()


def bind_to_parent() -> None:
    """Called first in a rank: end it with its driver, however the driver ends.

    The rank gets one SIGTERM, which it may answer with a checkpoint, and is killed with its whole group
    where the driver's `shutdown_timeout_s` does not suffice (a rank stuck in a collective runs no
    handler). Does nothing in a process that `run_ranks` did not start.
    """
    # Not prctl(PR_SET_PDEATHSIG): the kernel sends that once for each thread of the dying driver, and a
    # rank takes the second SIGTERM as the order to leave at once. Taken out of the environment, so that
    # no program started by this rank is bound as well.
    bond = os.environ.pop(_BOND, None)
    if bond is not None:
        pipe, _, timeout_s = bond.partition(":")
        args = (int(pipe), float(timeout_s))
        threading.Thread(target=_end_with_driver, args=args, name="bind_to_parent", daemon=True).start()


def bond(pipe: int, timeout_s: float) -> dict[str, str]:
    """The environment by which a child that calls `bind_to_parent` ends with whoever holds the other end of `pipe`."""
    return {_BOND: f"{pipe}:{timeout_s}"}


def joined() -> bool:
    """Whether another launcher (torchrun) started this process as one rank: RANK and WORLD_SIZE are set.

    Variables of SLURM or MPI alone change nothing.

    Raises:
        ConfigError: only one of the two is set.
    """
    names = ("RANK", "WORLD_SIZE")
    found = [name for name in names if os.environ.get(name)]
    if len(found) == 1:
        (missing,) = set(names) - set(found)
        raise ConfigError(
            f"{found[0]} is set in the environment but {missing} is not; set both (torchrun does) to join as one "
            f"rank of several, or unset {found[0]} to let vlmft start the ranks itself"
        )
    return bool(found)


def count_devices() -> int:
    """Return the number of CUDA devices this process may use, without importing torch; 0 where there is none.

    CUDA_VISIBLE_DEVICES is read as CUDA does: everything after the first invalid entry is invisible,
    and a list with a duplicate shows nothing (CUDA C++ Programming Guide, environment variables).
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "":
        return 0
    present = _devices_present()
    if visible is None or present == 0:
        return present
    entries: list[str] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.isdecimal() and int(entry) < present:
            entry = str(int(entry))
        elif not entry.startswith(("GPU-", "MIG-")):
            break
        if entry in entries:
            return 0
        entries.append(entry)
    return len(entries)


def _devices_present() -> int:
    # Not /proc/driver/nvidia/gpus: a container may show all of its host's devices there, but has nodes
    # in /dev for its own only. Where no node exists (WSL, or nothing has used the driver since boot),
    # nvidia-smi knows, and makes them.
    nodes = [node for node in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", node.name)]
    tool = shutil.which("nvidia-smi")
    if nodes or tool is None:
        return len(nodes)
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())


@dataclass(frozen=True)
class Signalled:
    """A signal that this process was sent, and has not answered yet."""

    signal: signal.Signals
    at: float  # time.monotonic, in seconds


@dataclass(frozen=True)
class _Ended:
    rank: int


@dataclass(frozen=True)
class _Failure:
    code: int
    rank: int
    reason: str

    @property
    def weight(self) -> int:
        """How much the code says: left on request, ended for an unknown cause, ended for a stated one."""
        return 0 if self.code in _LEFT_ON_REQUEST else 2 if self.code in _CAUSES else 1


class _Ranks:
    """The children and what has become of them. Everything happens in the one thread that waits."""

    def __init__(self, events: "queue.SimpleQueue[Signalled | _Ended]", shutdown_timeout_s: float) -> None:
        self.events = events
        self.timeout_s = shutdown_timeout_s
        self.pipe = os.pipe()  # ends, for its readers, with this process
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.ended: list[int] = []  # the process groups whose leader is reaped
        self.failure: _Failure | None = None
        self.received: signal.Signals | None = None
        self.passed_on: set[signal.Signals] = set()
        self.stop_asked_at: float | None = None
        self.deadline: float | None = None
        self.tell_others_at: float | None = None
        self.leaving_since = ""  # what started the deadline, in words
        self.timed_out = False
        self.killed_by: signal.Signals | None = None

    def start(self, command: Sequence[str], ranks: int, env: Mapping[str, str]) -> None:
        shared = {
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
        } | bond(self.pipe[0], self.timeout_s)
        for rank in range(ranks):
            child_env = {**env, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            child = subprocess.Popen(
                command, env=child_env, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=self.pipe[:1]
            )
            self.running[rank] = child
            threading.Thread(target=self._watch, args=(rank, child), name=f"watch rank {rank}", daemon=True).start()

    def wait(self) -> RanksExit:
        while self.running:
            times = (None if self.timed_out else self.deadline, self.tell_others_at)
            due = min((at for at in times if at is not None), default=None)
            try:
                event = self.events.get(timeout=None if due is None else max(0.0, due - time.monotonic()))
            except queue.Empty:
                self._on_time()
                continue
            if isinstance(event, Signalled):
                self._on_signal(event.signal, event.at)
            else:
                self._on_end(event.rank)
        if self.failure is None:
            return RanksExit(0, None, "every rank ended with exit code 0", self.received)
        return RanksExit(self.failure.code, self.failure.rank, self.failure.reason, self.received)

    def clear(self) -> None:
        """Leave nothing behind, also where an error cut the waiting short."""
        self._kill()
        for rank in list(self.running):
            self._reap(rank)
        # Death by SIGKILL takes a moment. Bounded, since where nobody reaps orphans (a container whose
        # process 1 does not) the dead stay listed.
        until = time.monotonic() + 0.5
        while any(_group_exists(pid) for pid in self.ended) and time.monotonic() < until:
            time.sleep(0.01)
        for end in self.pipe:
            os.close(end)

    def _reap(self, rank: int) -> int:
        """Kill what an ended rank left in its group, and return how the rank itself ended."""
        child = self.running.pop(rank)
        _kill_group(child.pid)
        self.ended.append(child.pid)
        return child.wait()

    def _watch(self, rank: int, child: "subprocess.Popen[bytes]") -> None:
        # WNOWAIT leaves the dead child's pid taken until its group is killed: it cannot name a stranger.
        if hasattr(os, "waitid"):
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        else:
            child.wait()
        self.events.put(_Ended(rank))

    def _on_time(self) -> None:
        if self.tell_others_at is not None and self.tell_others_at <= time.monotonic():
            self.tell_others_at = None
            self._send(signal.SIGTERM)
        if self.deadline is not None and self.deadline <= time.monotonic():
            self.timed_out = True
            self._kill()

    def _on_signal(self, received: signal.Signals, now: float) -> None:
        if received is signal.SIGUSR1:
            if self.received is not None:
                return
        elif self.stop_asked_at is None:
            self.stop_asked_at = now
        elif now - self.stop_asked_at < ECHO_S:
            return
        else:
            self.killed_by = self.killed_by or received
            self._kill()
            return
        self.tell_others_at = None
        self.received = self.received or received
        self.passed_on.add(received)
        self._send(received)
        self._start_deadline(received.name)

    def _on_end(self, rank: int) -> None:
        failure = self._judge(rank, self._reap(rank))
        if failure is None:
            return
        if self.failure is None or (failure.weight > self.failure.weight and not self._lost_a_peer(failure)):
            self.failure = failure
        if self.deadline is None:
            if failure.weight > 0:
                self._send(signal.SIGTERM)
            else:  # those that leave together with it would take a signal of ours for the second one
                self.tell_others_at = time.monotonic() + LONE_S
            self._start_deadline(f"the end of rank {rank}")

    def _lost_a_peer(self, failure: _Failure) -> bool:
        """Whether `failure` may only say that a rank before it left on request."""
        if self.failure is None or self.failure.weight > 0 or failure.weight != 1 or self.killed_by is not None:
            return False
        return self.received is None if self.timed_out else failure.code in _LOST_PEER

    def _judge(self, rank: int, returncode: int) -> _Failure | None:
        if returncode == 0:
            return None
        if returncode > 0:
            return _Failure(returncode, rank, f"rank {rank} ended with exit code {returncode}")
        number, name = -returncode, _signal_name(-returncode)
        if number == signal.SIGKILL and self.killed_by is not None:
            reason = f"rank {rank} was killed at once by a second {self.killed_by.name}"
            return _Failure(128 + self.killed_by, rank, reason)
        if number == signal.SIGKILL and self.timed_out:
            reason = f"rank {rank} had not ended {self.timeout_s:g} s after {self.leaving_since} and was killed"
            return _Failure(128 + number, rank, reason)
        code = 128 + number
        if number in self.passed_on:
            code = InterruptedRunError.exit_code if number == signal.SIGINT else PreemptedError.exit_code
        return _Failure(code, rank, f"rank {rank} was killed by signal {name}")

    def _start_deadline(self, since: str) -> None:
        if self.deadline is None:
            self.deadline = time.monotonic() + self.timeout_s
            self.leaving_since = since

    def _send(self, number: signal.Signals) -> None:
        for child in self.running.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, number)

    def _kill(self) -> None:
        for child in self.running.values():
            _kill_group(child.pid)


def _kill_group(leader_pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader_pid, signal.SIGKILL)


def _group_exists(leader_pid: int) -> bool:
    try:
        os.killpg(leader_pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _end_with_driver(pipe: int, timeout_s: float) -> None:
    os.read(pipe, 1)  # nothing is ever written: it returns when the driver, the only writer, is gone
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(timeout_s)
    os.killpg(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def signals_into(events: "queue.SimpleQueue[Any]") -> Iterator[None]:
    """Turn signals into events while the body runs; SimpleQueue.put may be called from a handler."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    meanings = {number: number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        meanings[signal.SIGHUP] = signal.SIGTERM

    def handle(number: int, frame: FrameType | None) -> None:
        events.put(Signalled(meanings[signal.Signals(number)], time.monotonic()))

    before = {number: signal.signal(number, handle) for number in meanings}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _free_port() -> int:
    # Another process may take it before rank 0 binds it. The kernel hands out ports in a way that makes
    # this rare, and rank 0 then ends with an error that names the port.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
