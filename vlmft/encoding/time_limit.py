"""A limit on time for code that nobody can interrupt.

A picture's decoder may hang in C, where no signal handler and no exception reaches it. So it works in a thread beside,
and one that does not come back in time is left where it is. The thread that waits can then say which sample it was.
"""

import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class OverdueError(Exception):
    """An item took longer than it was given."""


class TimeLimit:
    """Applies functions to items, each of which gets `seconds` at least, and less than twice as long.

    What is handed over between the threads is a whole list, not an item: that costs 0.03 ms a list.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._worker: _Worker | None = None

    def __reduce__(self) -> "tuple[type[TimeLimit], tuple[float]]":
        return TimeLimit, (self.seconds,)

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result | OverdueError]:
        """Return what `function` gives for each item, in order; an `OverdueError` where it does not come back.

        What `function` raises is raised here.
        """
        results: list[Result | OverdueError] = []
        while len(results) < len(items):
            results += self._until_overdue(function, items[len(results) :])
        return results

    def _until_overdue(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result | OverdueError]:
        """The results of the first items, up to the end or to one that is overdue."""
        arrived: list[Result] = []

        def work() -> None:
            for item in items:
                arrived.append(function(item))

        if self._worker is None or self._worker.pid != os.getpid():  # a forked process has no threads but its own
            self._worker = _Worker()
        future = self._worker.submit(work)
        before = -1
        while not wait([future], self.seconds).done:
            if len(arrived) == before:
                self._worker = None
                return [*arrived[:before], OverdueError()]
            before = len(arrived)
        future.result()  # raises what `function` raised
        return [*arrived]


class _Worker:
    """A daemon thread, which keeps no process from ending, wherever it hangs."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._inbox: queue.SimpleQueue[tuple[Future[None], Callable[[], None]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, work: Callable[[], None]) -> "Future[None]":
        future: Future[None] = Future()
        self._inbox.put((future, work))
        return future

    def _run(self) -> None:
        while True:
            future, work = self._inbox.get()
            try:
                work()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(None)
            del future, work  # not to hold a list of samples until the next one comes
