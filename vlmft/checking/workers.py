"""Items worked through in processes of their own: one that crashes its process, or hangs, costs itself alone.

The parent hands out ranges of items. Before a process begins an item it writes the item's number into memory that
outlives it, so that the parent knows what a dead process was at, and kills one that has been at the same item for too
long. Another process then goes on behind that item.
"""

import contextlib
import multiprocessing.connection
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

import numpy as np

from vlmft.checking.counts import context
from vlmft.errors import InterruptedRunError, PreemptedError, VlmftError
from vlmft.launch import Signalled, signals_into

F = TypeVar("F")

_LARGEST_RANGE = 256
_POLL_S = 0.1  # how long a signal may go unnoticed
_LONGEST_LOOK_S = 1.0  # time between two looks beyond this was nobody's fault: all were stopped, or the screen was
_EARLY_DEATHS = 10  # of processes that were at no item
_NOTHING = -1

Work = Callable[[int], F | None]
"""What is done with an item; returns what is to be told of it. Under spawn it is pickled."""

Lost = Callable[[int, int | None], F]
"""What is to be told of an item that ended its process (the exit code), or was overdue (None)."""


def work_through(
    work: Work[F], lost: Lost[F], num_items: int, num_workers: int, timeout_s: float
) -> Generator[tuple[int, list[F]], None, None]:
    """Apply `work` to the items 0, 1, ... in `num_workers` processes.

    Close it (`contextlib.closing`) where it may not be read to its end.

    Args:
        timeout_s: seconds that an item may take; then its process is killed.

    Yields:
        Each time some items are done: how many are, and what is to be told of further ones, in the order of the items.

    Raises:
        InterruptedRunError: SIGINT came.
        PreemptedError: another signal came that asks to leave.
        VlmftError: `work` raised it.
        RuntimeError: `work` raised anything else; or processes die before they begin an item.
    """
    events: queue.SimpleQueue[Signalled] = queue.SimpleQueue()
    with signals_into(events):
        pool = _Pool(work, lost, num_items, num_workers, timeout_s, events)
        try:
            yield from pool.run()
        finally:
            pool.kill()


@dataclass
class _Range(Generic[F]):
    """Items that one process works through, or several after each other."""

    number: int
    start: int
    stop: int
    size: int
    told: dict[int, F] = field(default_factory=dict)


class _Worker(Generic[F]):
    """A process and what it is at."""

    def __init__(self, pool: "_Pool[F]", place: int) -> None:
        self.place = place
        self.range: _Range[F] | None = None
        self.at, self.age_s = _NOTHING, 0.0
        """The item that it was seen at, and for how long."""
        self.overdue: int | None = None
        """The item for which it is being killed."""
        pool.board[place] = _NOTHING
        self.connection, theirs = context().Pipe()
        args = (pool.work, theirs, pool.shared, place, *pool.lifeline)
        self.process: Any = context().Process(target=_serve, args=args, daemon=True)  # type: ignore[attr-defined]
        # A signal between the fork and the child's own handlers would run the parent's.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def give(self, work: _Range[F]) -> None:
        """Have it work through a range."""
        self.range = work
        with contextlib.suppress(OSError):  # it has just died, which is noticed in its turn
            self.connection.send((work.start, work.stop))

    def kill(self) -> None:
        """End it at once, whatever it is at."""
        self.process.kill()
        self.process.join()
        self.connection.close()


_HANDLED = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP}


class _Pool(Generic[F]):
    def __init__(
        self,
        work: Work[F],
        lost: Lost[F],
        num_items: int,
        num_workers: int,
        timeout_s: float,
        events: "queue.SimpleQueue[Signalled]",
    ) -> None:
        self.work, self.lost, self.timeout_s, self.events = work, lost, timeout_s, events
        num_workers = max(1, min(num_workers, num_items))
        size = max(1, min(_LARGEST_RANGE, num_items // (8 * num_workers)))
        starts = range(0, num_items, size)
        self.waiting: deque[_Range[F]] = deque(
            _Range(number, start, min(start + size, num_items), min(size, num_items - start))
            for number, start in enumerate(starts)
        )
        self.shared = context().RawArray("q", num_workers)
        self.board = np.frombuffer(self.shared, dtype=np.int64)
        self.looked = time.monotonic()
        self.lifeline = context().Pipe(duplex=False)
        self.killed: set[int] = set()
        """Items at which a process got a SIGKILL that was not sent here."""
        self.early_deaths = 0
        self.done: dict[int, list[F]] = {}
        """What is to be told of ranges that are done, by their numbers, where an earlier one is not."""
        self.num_done, self.next = 0, 0
        self.workers: list[_Worker[F]] = []
        for place in range(num_workers if num_items else 0):
            self.workers.append(_Worker(self, place))

    def run(self) -> Iterator[tuple[int, list[F]]]:
        for worker in self.workers:
            self._next_range(worker)
        while any(worker.range for worker in self.workers):
            self._obey()
            self._kill_overdue()
            by_handle = {handle: w for w in self.workers for handle in (w.connection, w.process.sentinel)}
            ready = multiprocessing.connection.wait(list(by_handle), _POLL_S)
            before = self.num_done
            for worker in {id(by_handle[handle]): by_handle[handle] for handle in ready}.values():
                self._hear(worker)
            if self.num_done > before:
                yield self.num_done, self._in_order()

    def kill(self) -> None:
        """End all processes."""
        for worker in self.workers:
            worker.kill()
        for end in self.lifeline:
            end.close()

    def _obey(self) -> None:
        with contextlib.suppress(queue.Empty):
            received = self.events.get_nowait().signal
            if received is signal.SIGINT:
                raise InterruptedRunError("interrupted")
            raise PreemptedError(f"stopped by {received.name}")

    def _kill_overdue(self) -> None:
        before, self.looked = self.looked, time.monotonic()
        passed = min(self.looked - before, _LONGEST_LOOK_S)
        for worker in self.workers:
            item = int(self.board[worker.place])
            worker.age_s = worker.age_s + passed if item == worker.at else 0.0
            worker.at = item
            if worker.overdue is None and item != _NOTHING and worker.age_s > self.timeout_s:
                worker.overdue = item
                worker.process.kill()

    def _hear(self, worker: _Worker[F]) -> None:
        """Take what a process says; where it is dead, another takes its place."""
        try:
            while worker.connection.poll():
                self._take(worker, worker.connection.recv())
        except (EOFError, OSError):  # dead; half a message may be left
            worker.process.join()
        if worker.process.exitcode is not None:
            self._replace(worker)

    def _take(self, worker: _Worker[F], message: Any) -> None:
        work = worker.range
        assert work is not None
        kind, value = message
        if kind == "told":
            work.told[value[0]] = value[1]
        elif kind == "done":
            self._finish(work)
            self._next_range(worker)
        elif isinstance(value, VlmftError):
            raise value
        else:
            raise RuntimeError(value)

    def _next_range(self, worker: _Worker[F]) -> None:
        worker.range = None
        if self.waiting:
            worker.give(self.waiting.popleft())

    def _finish(self, work: _Range[F]) -> None:
        self.num_done += work.size
        self.done[work.number] = [work.told[item] for item in sorted(work.told)]

    def _in_order(self) -> list[F]:
        """What is to be told of the ranges that are done, up to the first that is not."""
        found: list[F] = []
        while self.next in self.done:
            found += self.done.pop(self.next)
            self.next += 1
        return found

    def _replace(self, worker: _Worker[F]) -> None:
        """Put another process in a dead one's place, behind the item that it died of."""
        self.workers.remove(worker)
        worker.connection.close()
        work = worker.range
        item = int(self.board[worker.place]) if worker.overdue is None else worker.overdue
        if work is not None and work.start <= item < work.stop:
            work.start = self._behind(item, worker, work)
            if work.start == work.stop:
                self._finish(work)
                work = None
        elif work is not None and worker.overdue is None:
            self.early_deaths += 1
            if self.early_deaths > _EARLY_DEATHS:
                raise RuntimeError(
                    f"processes that examine samples end with exit code {worker.process.exitcode} before they begin"
                )
        work = work or (self.waiting.popleft() if self.waiting else None)
        if work is not None:
            successor = _Worker(self, worker.place)
            self.workers.append(successor)
            successor.give(work)

    def _behind(self, item: int, worker: _Worker[F], work: _Range[F]) -> int:
        """Where to go on after a process has died at `item`, which is blamed where its death was its own."""
        code = worker.process.exitcode if worker.overdue is None else None
        if code == -signal.SIGKILL and item not in self.killed:  # memory may be short for a moment
            self.killed.add(item)
            return item
        work.told[item] = self.lost(item, code)
        return item + 1


def _serve(
    work: Work[F], connection: Connection, shared: Any, place: int, lifeline: Connection, parents_end: Connection
) -> None:
    """What a process does: works through ranges until there are no more, or its parent is gone."""
    for number in _HANDLED:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, too, which ends this process
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
    parents_end.close()
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)  # there is a process for each core; and OpenMP's threads do not survive a fork
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    board = np.frombuffer(shared, dtype=np.int64)
    with contextlib.suppress(EOFError, OSError):
        while True:
            start, stop = connection.recv()
            for item in range(start, stop):
                board[place] = item
                try:
                    found = work(item)
                except VlmftError as error:
                    connection.send(("error", error))
                    return
                except Exception:
                    connection.send(("error", f"at item {item}:\n{traceback.format_exc()}"))
                    return
                board[place] = _NOTHING  # telling is no part of it
                if found is not None:
                    connection.send(("told", (item, found)))
            connection.send(("done", None))


def _end_with_parent(lifeline: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv()  # nothing is ever sent: it returns when every other end is closed, the parent's own
    os._exit(1)
