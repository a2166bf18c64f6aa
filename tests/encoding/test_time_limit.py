import os
import pickle
import threading
import time
from multiprocessing import get_context

import pytest

from vlmft.encoding.time_limit import OverdueError, TimeLimit


def test_results_come_in_order() -> None:
    assert TimeLimit(60).map(lambda number: number * 2, range(100)) == list(range(0, 200, 2))
    assert TimeLimit(60).map(str, []) == []


def test_what_does_not_come_back_is_overdue_and_the_others_are_not() -> None:
    release = threading.Event()
    limit = TimeLimit(0.2)

    def work(number: int) -> int:
        if number % 3 == 1:
            release.wait(60)
        return number

    started = time.monotonic()
    found = limit.map(work, range(7))
    release.set()
    assert time.monotonic() - started < 30
    assert [item if isinstance(item, int) else None for item in found] == [0, None, 2, 3, None, 5, 6]
    assert all(isinstance(item, OverdueError) for item in found if not isinstance(item, int))
    assert limit.map(work, [0, 2]) == [0, 2]


def test_many_items_may_take_longer_together_than_one_may() -> None:
    found = TimeLimit(0.3).map(lambda number: time.sleep(0.05) or number, range(20))
    assert found == list(range(20))


@pytest.mark.parametrize("kind", [ValueError, TimeoutError])
def test_an_error_comes_out_as_it_is(kind: type[Exception]) -> None:
    limit = TimeLimit(60)

    def work(number: int) -> int:
        raise kind(f"number {number}")

    with pytest.raises(kind, match="^number 5$"):
        limit.map(work, [5])
    assert limit.map(str, [1]) == ["1"]


def test_works_in_a_forked_process_and_through_pickle() -> None:
    limit = TimeLimit(30)
    assert limit.map(str, [1]) == ["1"]  # its thread exists here, and not in what is forked from here
    context = get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=lambda: answers.put((os.getpid(), limit.map(str, [2]))))
    child.start()
    assert answers.get() == (child.pid, ["2"])
    child.join()
    assert pickle.loads(pickle.dumps(limit)).seconds == 30


def test_no_process_waits_for_a_thread_that_hangs() -> None:
    def hang() -> None:
        TimeLimit(0.1).map(lambda _: threading.Event().wait(), [0])

    child = get_context("fork").Process(target=hang)
    child.start()
    child.join(timeout=20)
    assert child.exitcode == 0
