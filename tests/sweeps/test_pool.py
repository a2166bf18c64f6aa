"""Jobs beside each other: the queue, places, crashes, signals, and that none is left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import until
from vlmft.config.pool import PoolJob, PoolSettings
from vlmft.errors import InterruptedRunError, PreemptedError, StorageError
from vlmft.run_folder import RunFolder
from vlmft.sweeps.display import LiveDisplay
from vlmft.sweeps.pool import run_jobs
from vlmft.sweeps.slots import Slot

TWO = PoolSettings((), 1, 2)
WAIT = "trap 'echo told; exit 75' TERM; trap 'exit 130' INT; touch ready; while :; do sleep 0.05; done"
Ended = list[tuple[int, int, str]]


def job(folder: Path, number: int, script: str) -> PoolJob:
    path = folder / str(number)
    return PoolJob(number, (f"seed={number}", "run.dir=s"), path, ("sh", "-c", f"cd {path} || exit 9\n{script}"))


def run(jobs: list[PoolJob], settings: PoolSettings = TWO, **more: object) -> Ended:
    found: Ended = []
    run_jobs(jobs, settings, lambda job, code, reason: found.append((job.number, code, reason)), **more)  # type: ignore[arg-type]
    return found


def signalled(number: signal.Signals, *files: Path, times: int = 1) -> threading.Thread:
    """Send a signal to this process once all `files` are there."""

    def send() -> None:
        until(lambda: all(file.exists() for file in files), "the jobs", 20)
        for _ in range(times):
            os.kill(os.getpid(), number)
            time.sleep(0.7)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_a_job_that_ends_badly_leaves_the_others_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    jobs = [
        job(tmp_path, 0, "echo 'error: no such thing'; echo 'error: nor this' >&2; exit 2"),
        job(tmp_path, 1, "kill -KILL $$"),
        job(tmp_path, 2, "exit 1"),
        job(tmp_path, 3, "echo fine"),
    ]
    log = tmp_path / "2" / "log.txt"
    assert sorted(run(jobs)) == [
        (0, 2, "no such thing\nnor this"),
        (1, 137, "its driver was killed by SIGKILL"),
        (2, 1, f"exit code 1; see {log}"),
        (3, 0, ""),
    ]
    out = capfd.readouterr().out
    assert "pool     4 jobs on 2 x cpu" in out and "job 0 started on cpu slot 0: seed=0\n" in out
    assert "job 0 failed after 0 s: no such thing\n" in out and "job 3 done after 0 s\n" in out
    assert "fine" not in out and (tmp_path / "3" / "log.txt").read_text().splitlines()[-1:] == ["fine"]


def test_as_many_run_as_there_are_places_each_with_its_device(tmp_path: Path) -> None:
    script = "echo $CUDA_VISIBLE_DEVICES > device; date +%s%N > began; sleep 0.3; date +%s%N > ended"
    jobs = [job(tmp_path, number, script) for number in range(4)]
    run(jobs, PoolSettings(("5", "7"), 1, None))
    times = [[int((tmp_path / str(n) / name).read_text()) for name in ("began", "ended")] for n in range(4)]
    devices = [(tmp_path / str(n) / "device").read_text().strip() for n in range(4)]
    assert sorted(devices) == ["5", "5", "7", "7"]
    for device in ("5", "7"):
        first, second = sorted(span for span, on in zip(times, devices, strict=True) if on == device)
        assert first[1] <= second[0]
    assert times[0][1] > times[1][0] and times[1][1] > times[0][0]


def test_the_next_job_is_asked_for_only_when_there_is_room(tmp_path: Path) -> None:
    ended: list[int] = []
    known_when_asked: list[int] = []

    def jobs() -> Iterator[PoolJob]:
        for number in range(3):
            known_when_asked.append(len(ended))
            yield job(tmp_path, number, "true")

    run_jobs(jobs(), PoolSettings((), 1, 1), lambda job, code, reason: ended.append(job.number))
    assert known_when_asked == [0, 1, 2]


def test_a_reason_in_the_result_is_left_there_and_errors_of_earlier_starts_are_not_of_this_one(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "0", "seed: 0\n")
    folder.start()
    folder.finish(3, "the loss is nan")
    assert run([job(tmp_path, 0, "echo 'error: the loss is nan'; exit 3")]) == [(0, 3, "")]
    assert run([job(tmp_path, 0, "echo 'error: refused'; exit 2")]) == [(0, 2, "refused")]


@pytest.mark.parametrize(
    ("number", "code", "error"),
    [
        (signal.SIGTERM, 75, PreemptedError),
        (signal.SIGINT, 130, InterruptedRunError),
    ],
)
def test_a_signal_is_passed_on_and_no_further_job_starts(
    tmp_path: Path, number: signal.Signals, code: int, error: type[Exception]
) -> None:
    jobs = [job(tmp_path, n, WAIT) for n in range(3)]
    found: Ended = []
    before = signal.getsignal(number)
    thread = signalled(number, tmp_path / "0" / "ready", tmp_path / "1" / "ready")
    with pytest.raises(error, match=f"the sweep was stopped by {number.name}; the same run.dir goes on with it"):
        run_jobs(jobs, TWO, lambda job, code, reason: found.append((job.number, code, reason)))
    thread.join()
    assert sorted((job, code) for job, code, _ in found) == [(0, code), (1, code)]
    assert not (tmp_path / "2").exists()
    assert signal.getsignal(number) is before


def test_a_third_signal_kills_what_does_not_listen(tmp_path: Path) -> None:
    deaf = job(tmp_path, 0, "trap '' TERM; touch ready; while :; do sleep 0.05; done")
    thread = signalled(signal.SIGTERM, tmp_path / "0" / "ready", times=3)
    with pytest.raises(PreemptedError):
        run([deaf])
    thread.join()


def test_a_job_is_stopped_early_where_asked(tmp_path: Path) -> None:
    asked: list[int] = []

    def stop(job: PoolJob) -> bool:
        asked.append(job.number)
        return job.number == 0 and (job.folder / "ready").exists()

    other = "sleep 1.5; exit 0"
    found = run([job(tmp_path, 0, WAIT), job(tmp_path, 1, other)], stop_early=stop)
    assert [(number, code) for number, code, _ in sorted(found)] == [(0, 75), (1, 0)]
    assert (tmp_path / "0" / "log.txt").read_text().splitlines().count("told") == 1 and 1 in asked


def test_a_folder_that_cannot_be_made_ends_what_runs(tmp_path: Path) -> None:
    (tmp_path / "1").write_text("")
    before = set(psutil.Process().children())  # other tests' helpers, such as multiprocessing's resource tracker
    with pytest.raises(StorageError, match="1/log.txt: cannot be written: "):
        run([job(tmp_path, 0, WAIT), job(tmp_path, 1, "true")])
    until(
        lambda: (
            not [
                child
                for child in set(psutil.Process().children()) - before
                if child.is_running() and child.status() != psutil.STATUS_ZOMBIE
            ]
        ),
        "the first job",
        5,
    )


def test_no_job_outlives_a_killed_pool(tmp_path: Path) -> None:
    """The jobs are bound to their pool, as ranks are to their driver."""
    bound = """
        import sys, time, signal, pathlib
        from vlmft.launch import bind_to_parent
        def told(*_):
            pathlib.Path("told").touch()
            sys.exit(75)
        signal.signal(signal.SIGTERM, told)
        bind_to_parent()
        pathlib.Path("ready").touch()
        time.sleep(60)
    """
    (tmp_path / "bound.py").write_text(textwrap.dedent(bound))
    pool = f"""
        import sys
        from pathlib import Path
        from vlmft.config.pool import PoolJob, PoolSettings
        from vlmft.sweeps.pool import run_jobs
        jobs = [
            PoolJob(n, (), Path(str(n)), ("sh", "-c", f"cd {{n}}; exec {sys.executable} ../bound.py")) for n in range(2)
        ]
        run_jobs(jobs, PoolSettings((), 1, 2), print)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(pool)], cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        until(lambda: all((tmp_path / str(n) / "ready").exists() for n in range(2)), "the jobs", 30)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 2
    finally:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []
    assert all((tmp_path / str(n) / "told").exists() for n in range(2))


def test_a_terminal_gets_a_table_of_the_jobs(tmp_path: Path) -> None:
    import io

    from rich.console import Console
    from rich.live import Live

    screen = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    live = Live(console=screen, auto_refresh=False)
    display = LiveDisplay(screen, 3, live)
    for number in range(2):
        folder = RunFolder.create(tmp_path / str(number), "seed: 0\n")
        with folder.open_metrics() as metrics:
            metrics.append({"step": 7, "loss": 0.5})
            metrics.append({"step": 7, "eval/exact_match": 1.0})
        display.started(job(tmp_path, number, "true"), Slot(f"cuda {number}"))
    display.ended(job(tmp_path, 0, "true"), 4, "CUDA out of memory\nmore", 3.2)
    with live:
        display.refresh()
    screen.print(display.table())
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    assert rows[-2:] == [
        ["0", "seed=0", "failed", "", "7", "0.500", "3"],
        ["1", "seed=1", "running", "cuda 1", "7", "0.500", "0"],
    ]
    assert "jobs, 1 waiting" in shown and "job 0 failed after 3 s: CUDA out of memory" in shown
