"""A process for each job, so many at a time: what crashes a decoder ends its own job alone."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from vlmft.errors import VlmftError

R = TypeVar("R")


def run_each(
    work: Callable[..., R], jobs: Mapping[str, tuple[Any, ...]], workers: int
) -> Iterator[tuple[str, R | str]]:
    """Call `work(*arguments)` for each job, in their order; yield names with results as these come.

    A job whose process dies yields a text that says so. Processes end with this one, however it ends.

    Raises:
        VlmftError: what `work` raised of these.
    """
    context = multiprocessing.get_context("spawn")
    waiting = iter(jobs.items())
    running: dict[Any, tuple[str, BaseProcess]] = {}
    try:
        while True:
            while len(running) < workers and (job := next(waiting, None)):
                receiver, sender = context.Pipe(duplex=False)
                process: BaseProcess = context.Process(target=_run, args=(work, job[1], sender), daemon=True)
                process.start()
                sender.close()
                running[receiver] = (job[0], process)
            if not running:
                return
            for ready in wait(list(running)):
                name, process = running.pop(ready)
                yield name, _result(name, ready, process)
    finally:
        for _, process in running.values():
            process.kill()
            process.join()


def _result(name: str, receiver: Any, process: BaseProcess) -> Any:
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        return f"{name}: the process that worked on it died (exit code {process.exitcode}); leave the file out"
    process.join()
    if isinstance(result, VlmftError):
        raise result
    return result


def _run(work: Callable[..., Any], arguments: tuple[Any, ...], sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent as well, which ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        sender.send(work(*arguments))
    except VlmftError as error:
        sender.send(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
