import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from vlmft.annotation.processes import run_each
from vlmft.errors import StorageError


def square(number: int) -> int:
    return number * number


def crash(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    return number


def full(number: int) -> int:
    raise StorageError("the device is full")


def meet(folder: Path, number: int) -> int:
    """How many are there at once, by the files that each leaves while it runs."""
    mine = folder / str(number)
    mine.touch()
    time.sleep(1.0)
    there = len(list(folder.iterdir()))
    mine.unlink()
    return there


def test_every_job_gives_its_result_and_no_more_run_than_allowed(tmp_path: Path) -> None:
    jobs = {str(number): (tmp_path, number) for number in range(4)}
    results = dict(run_each(meet, jobs, workers=2))
    assert set(results) == set(jobs) and set(results.values()) <= {1, 2} and 2 in results.values()
    assert list(run_each(square, {}, workers=2)) == []


def test_a_job_whose_process_dies_leaves_the_others_alone() -> None:
    results = dict(run_each(crash, {str(number): (number,) for number in range(3)}, workers=1))
    died = "1: the process that worked on it died (exit code -11); leave the file out"
    assert results == {"0": 0, "1": died, "2": 2}


def test_an_error_of_ones_own_ends_all() -> None:
    with pytest.raises(StorageError, match="the device is full"):
        list(run_each(full, {"0": (0,)}, workers=1))


def test_no_process_outlives_the_command() -> None:
    code = (
        "import time\nfrom vlmft.annotation.processes import run_each\n"
        "if __name__ == '__main__':\n"
        "    print('begun', flush=True)\n"
        "    list(run_each(time.sleep, {'0': (60,), '1': (60,)}, workers=2))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "begun\n"
    end = time.monotonic() + 30
    while len(children := psutil.Process(parent.pid).children()) < 3:  # with the resource tracker
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.5)
    parent.kill()
    parent.communicate()
    gone, alive = psutil.wait_procs(children, timeout=10)
    for process in alive:
        process.kill()
    assert len(gone) == 3 and not alive
