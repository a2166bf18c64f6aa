"""Items in processes of their own: what crashes, hangs, or is killed from outside costs itself alone."""

import contextlib
import faulthandler
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from vlmft.checking import workers as module
from vlmft.checking.workers import work_through
from vlmft.errors import ConfigError, InterruptedRunError, PreemptedError
from vlmft.launch import Signalled


def lost(item: int, exit_code: int | None) -> str:
    return f"{item} lost: {exit_code}"


def crash(number: signal.Signals) -> None:
    """End this process as a decoder does; pytest's own word about it is of no interest."""
    faulthandler.disable()
    os.kill(os.getpid(), number)


def children() -> set[int]:
    """Processes that this one has started, and that are still there."""
    found = psutil.Process().children(recursive=True)
    return {child.pid for child in found if child.status() != psutil.STATUS_ZOMBIE}


def told_by(
    work: Callable[[int], str | None], num_items: int, num_workers: int = 2, timeout_s: float = 60.0
) -> list[str]:
    """All that is told, in the order in which it comes; nothing of this is left when it returns."""
    before = children()
    told: list[str] = []
    last = 0
    for done, found in work_through(work, lost, num_items, num_workers, timeout_s):
        assert last < done <= num_items
        last = done
        told += found
    assert last == num_items
    assert children() <= before
    return told


def test_what_is_told_comes_in_the_order_of_the_items() -> None:
    def work(item: int) -> str | None:
        time.sleep(0.002 * (item % 7))
        return str(item) if item % 3 == 0 else None

    assert told_by(work, 100, 3) == [str(item) for item in range(0, 100, 3)]


@pytest.mark.parametrize(("num_items", "num_workers"), [(0, 4), (1, 4), (3, 1)])
def test_any_number_of_items_and_processes(num_items: int, num_workers: int) -> None:
    assert told_by(str, num_items, num_workers) == [str(item) for item in range(num_items)]


def test_all_processes_work_and_none_is_this_one(tmp_path: Path) -> None:
    def work(item: int) -> None:
        (tmp_path / str(os.getpid())).touch()
        time.sleep(0.01)

    told_by(work, 40, 2)
    assert len(list(tmp_path.iterdir())) == 2 and not (tmp_path / str(os.getpid())).exists()


def test_a_crash_costs_its_item_alone() -> None:
    def work(item: int) -> str | None:
        if item in (0, 17, 18, 39):
            crash(signal.SIGSEGV)
        if item == 25:
            os._exit(3)
        return "told" if item % 10 == 5 else None

    assert told_by(work, 40) == [
        "0 lost: -11",
        "told",
        "told",
        "17 lost: -11",
        "18 lost: -11",
        "25 lost: 3",
        "told",
        "39 lost: -11",
    ]


def test_what_was_told_before_a_crash_is_kept() -> None:
    def work(item: int) -> str:
        if item == 3:
            crash(signal.SIGABRT)
        return str(item)

    assert told_by(work, 4, 1) == ["0", "1", "2", "3 lost: -6"]


def test_an_item_that_hangs_is_killed_and_the_others_go_on() -> None:
    def work(item: int) -> str | None:
        if item in (5, 30):
            signal.pause()
        return "told" if item == 31 else None

    start = time.monotonic()
    assert told_by(work, 40, timeout_s=1) == ["5 lost: None", "30 lost: None", "told"]
    assert time.monotonic() - start < 300


def test_slow_items_are_not_overdue_together() -> None:
    assert told_by(lambda item: time.sleep(0.25), 8, 1, timeout_s=1.5) == []


def test_a_reader_that_takes_its_time_makes_nothing_overdue() -> None:
    """A screen that is stopped stops the parent, and with it processes that have something to tell."""
    told: list[str] = []
    more_than_a_pipe_holds = 200_000
    for _, found in work_through(lambda item: str(item) * more_than_a_pipe_holds, lost, 4, 2, timeout_s=0.4):
        time.sleep(0.8)
        told += found
    assert told == [str(item) * more_than_a_pipe_holds for item in range(4)]


def test_a_process_that_is_killed_from_outside_does_its_item_again(tmp_path: Path) -> None:
    """The kernel kills where memory is short: of two processes that need much at a time, one comes through alone."""

    def work(item: int) -> str | None:
        if item == 7 and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "told" if item == 7 else None

    assert told_by(work, 20) == ["told"]


def test_an_item_that_is_killed_twice_is_lost() -> None:
    def work(item: int) -> None:
        if item == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    assert told_by(work, 20) == ["7 lost: -9"]


def test_an_error_that_no_item_is_to_blame_for_ends_it() -> None:
    def work(item: int) -> None:
        if item == 5:
            raise ConfigError("model.image: first", "second")

    with pytest.raises(ConfigError, match=r"model.image: first\nsecond"):
        told_by(work, 20)


def test_a_fault_of_the_program_names_the_item_and_the_line() -> None:
    def work(item: int) -> None:
        if item == 5:
            raise ZeroDivisionError("the moon is full")

    with pytest.raises(RuntimeError, match=r"(?s)at item 5:\nTraceback.*test_workers.py.*ZeroDivisionError: the moon"):
        told_by(work, 20)


def test_processes_that_never_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_serve", lambda *_: os._exit(7))
    with pytest.raises(RuntimeError, match="processes that examine samples end with exit code 7 before they begin"):
        told_by(str, 20)


@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        (signal.SIGINT, InterruptedRunError, "interrupted"),
        (signal.SIGTERM, PreemptedError, "stopped by SIGTERM"),
        (signal.SIGHUP, PreemptedError, "stopped by SIGTERM"),
    ],
)
def test_a_signal_ends_it_at_once(number: signal.Signals, error: type[Exception], message: str) -> None:
    before = children()
    threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
    start = time.monotonic()
    with pytest.raises(error, match=message):
        told_by(lambda item: signal.pause(), 4)
    assert time.monotonic() - start < 30
    assert children() == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_closed_early_it_leaves_no_process() -> None:
    before = children()
    with contextlib.closing(work_through(str, lost, 1000, 2, 60)) as told:
        next(told)
        assert len(children() - before) == 2
    assert children() == before


PARENT = """
import os, signal, sys, time
from vlmft.checking.workers import work_through
def work(item):
    open(os.path.join(sys.argv[1], str(os.getpid())), "w").close()
    time.sleep(60)
for _ in work_through(work, print, 2, 2, 100): pass
"""


def test_no_process_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)])
    end = time.monotonic() + 30
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    while any(map(psutil.pid_exists, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    gone = [not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE for pid in workers]
    assert gone == [True, True]


def test_an_item_that_ends_just_before_its_process_is_killed_is_the_one_to_blame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The parent decides by an earlier look; by then the process may be at the next item, which is done again."""
    events: queue.SimpleQueue[Signalled] = queue.SimpleQueue()

    def work(item: int) -> str:
        time.sleep(0.5 if item == 1 else 0.05)
        return str(item)

    pool = module._Pool(work, lost, 6, 1, 60, events)
    pool.waiting.clear()
    pool.waiting.append(module._Range(0, 0, 6, 6))

    def kill_too_late() -> None:
        (worker,) = pool.workers
        if worker.overdue is None and int(pool.board[0]) == 1:
            while int(pool.board[0]) == 1:
                time.sleep(0.01)
            worker.overdue = 1
            worker.process.kill()

    monkeypatch.setattr(pool, "_kill_overdue", kill_too_late)
    try:
        assert [text for _, found in pool.run() for text in found] == ["0", "1 lost: None", "2", "3", "4", "5"]
    finally:
        pool.kill()
