import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest

from vlmft import run_folder
from vlmft.errors import ConfigError, NumericError, StorageError
from vlmft.run_folder import MetricsWriter, RunFolder, state_of


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs" / "first", "seed: 0\n")


def lines(folder: RunFolder) -> list[dict[str, object]]:
    return [json.loads(line) for line in folder.metrics.read_text().splitlines()]


def test_layout(folder: RunFolder) -> None:
    root = folder.path
    assert root.is_absolute()
    assert folder.config.read_text() == "seed: 0\n"
    assert [path.relative_to(root).as_posix() for path in (folder.environment, folder.metrics, folder.result)] == [
        "environment.json",
        "metrics.jsonl",
        "result.json",
    ]
    assert [path.name for path in (folder.checkpoints, folder.final, folder.predictions, folder.tb)] == [
        "checkpoints",
        "final",
        "predictions",
        "tb",
    ]
    assert folder.checkpoint(100) == root / "checkpoints" / "step-00000100"


def test_path_is_fixed_when_the_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert RunFolder.create("here", "").path == tmp_path / "here"
    assert RunFolder.create("~/there", "").path == tmp_path / "home" / "there"


@pytest.mark.parametrize("file", ["config.yaml", "result.json"])
def test_create_refuses_a_folder_that_holds_a_run(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text("{}")
    with pytest.raises(ConfigError, match=rf"run.dir={tmp_path} holds a run already \({file} exists\); choose another"):
        RunFolder.create(tmp_path, "seed: 1\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == [file]
    assert (tmp_path / file).read_text() == "{}"


def test_create_takes_a_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    assert RunFolder.create(tmp_path, "a: 1\n").config.is_file()


def test_create_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file, not a folder"):
        RunFolder.create(tmp_path / "file", "")


def test_create_of_two_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RunFolder.create(tmp_path, "first: 1\n")
    monkeypatch.setattr(Path, "exists", lambda self: self == tmp_path)  # the other run came after the look
    with pytest.raises(ConfigError, match="holds a run already"):
        RunFolder.create(tmp_path, "second: 1\n")
    assert (tmp_path / "config.yaml").read_text() == "first: 1\n"


def test_open(folder: RunFolder, tmp_path: Path) -> None:
    assert RunFolder.open(folder.path).path == folder.path
    with pytest.raises(ConfigError, match="is not a run folder: it has no config.yaml"):
        RunFolder.open(tmp_path)


def test_life_of_a_result(folder: RunFolder) -> None:
    assert folder.read_result() == {}
    folder.start()
    running = folder.read_result()
    assert running["state"] == "running"
    assert running["pid"] == os.getpid()
    assert running["host"]
    assert datetime.fromisoformat(running["started"]).utcoffset() is not None
    assert running["exit_code"] is None
    folder.write_result(steps=3, eval={"base": {"exact_match": 0.2}})
    folder.write_result(train={"loss": math.nan}, eval={"tuned": {"exact_match": 0.9}, "p_value": 0.01})
    folder.finish(0, "finished")
    result = folder.read_result()
    assert (result["state"], result["exit_code"], result["reason"], result["steps"]) == ("done", 0, "finished", 3)
    assert result["eval"] == {"base": {"exact_match": 0.2}, "tuned": {"exact_match": 0.9}, "p_value": 0.01}
    assert result["train"] == {"loss": None}
    assert 0 <= result["seconds"] < 60
    assert [path.name for path in folder.path.iterdir() if "tmp" in path.name] == []
    folder.start(pid=7, host="elsewhere")
    again = folder.read_result()
    assert (again["state"], again["exit_code"], again["reason"], again["ended"]) == ("running", None, None, None)
    assert (again["pid"], again["host"], again["steps"]) == (7, "elsewhere", 3)


def test_finish_without_start_keeps_the_seconds_it_is_given(folder: RunFolder) -> None:
    folder.finish(75, "preempted at step 4", seconds=1.5)
    result = folder.read_result()
    assert (result["state"], result["seconds"]) == ("preempted", 1.5)


class TestSettle:
    """What the driver makes of result.json once the ranks are gone."""

    @pytest.mark.parametrize("code", [0, 3, 75])
    def test_the_word_of_rank_0_stands_where_it_has_the_commands_code(self, folder: RunFolder, code: int) -> None:
        folder.start()
        folder.finish(code, "as rank 0 saw it")
        folder.write_last_words(1, "as rank 1 saw it")
        folder.settle(code, "rank 1 ended", failed_rank=1 if code else None)
        assert folder.read_result()["reason"] == "as rank 0 saw it"
        assert list(folder.path.glob(".rank-*")) == []

    @pytest.mark.parametrize(("said", "code"), [(None, 4), (1, 4), (1, 1), (0, 1), (75, 2)])
    def test_else_that_of_the_rank_that_failed(self, folder: RunFolder, said: int | None, code: int) -> None:
        folder.start()
        if said is not None:
            folder.finish(said, "connection closed by peer")
        folder.write_last_words(1, "out of memory")
        folder.settle(code, "rank 1 ended", failed_rank=1)
        found = folder.read_result()
        assert (found["state"], found["exit_code"], found["reason"]) == ("failed", code, "rank 1: out of memory")

    @pytest.mark.parametrize("rank", [0, 1])
    def test_a_rank_that_said_nothing(self, folder: RunFolder, rank: int) -> None:
        folder.start()
        folder.settle(137, f"rank {rank} was killed by signal SIGKILL", failed_rank=rank)
        found = folder.read_result()
        assert (found["exit_code"], found["reason"]) == (137, f"rank {rank} was killed by signal SIGKILL")

    def test_a_new_life_forgets_the_words_and_the_bad_step_of_the_last(self, folder: RunFolder) -> None:
        folder.write_last_words(1, "out of memory")
        folder.write_bad_step(NumericError("the loss is nan", step=3, samples=["a"]))
        folder.start()
        folder.settle(1, "rank 1 ended with exit code 1", failed_rank=1)
        assert folder.read_result()["reason"] == "rank 1 ended with exit code 1"
        assert not folder.bad_step.exists()


@pytest.mark.parametrize(
    ("exit_code", "state"),
    [(0, "done"), (75, "preempted"), (130, "stopped"), (1, "failed"), (2, "failed"), (137, "failed")],
)
def test_state_follows_from_the_exit_code(exit_code: int, state: str) -> None:
    assert state_of(exit_code) == state


def test_damaged_result(folder: RunFolder) -> None:
    for text in ('{"state": "run', "[]", "\udcff"):
        folder.result.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(StorageError, match=r"result.json is damaged .*choose another run.dir"):
            folder.read_result()


def test_reader_never_meets_half_a_result(folder: RunFolder) -> None:
    folder.write_result(steps=0)
    done = threading.Event()

    def write() -> None:
        for step in range(100):
            folder.write_result(steps=step, padding="x" * 20_000)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not done.is_set():
        assert "steps" in folder.read_result()
    thread.join()


DISK_FULL = """
import resource, sys
from vlmft.errors import StorageError
from vlmft.run_folder import RunFolder
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
path, what = sys.argv[1:]
try:
    if what == "config":
        RunFolder.create(path, "x" * 1000)
    folder = RunFolder.create(path, "")
    if what == "result":
        folder.write_result(reason="x" * 1000)
    metrics = folder.open_metrics()
    metrics.append({"a": 1})
    metrics.append({"b": "x" * 1000})
except StorageError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("file", ["config.yaml", "result.json", "metrics.jsonl"])
def test_full_disk_is_a_storage_error(tmp_path: Path, file: str) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    command = [sys.executable, "-c", DISK_FULL, str(tmp_path / "run"), file.partition(".")[0]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (5, "")
    assert done.stdout.strip() == f"cannot write {tmp_path / 'run' / file}: File too large"
    left = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert left == {"config.yaml": [], "result.json": ["config.yaml"]}.get(file, ["config.yaml", "metrics.jsonl"])
    if file == "metrics.jsonl":
        MetricsWriter(tmp_path / "run" / file).close()
        assert (tmp_path / "run" / file).read_text() == '{"a": 1}\n'


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=f"cannot write {tmp_path}/file/run: Not a directory"):
        RunFolder.create(tmp_path / "file" / "run", "")


def test_metrics_are_lines_of_valid_json(folder: RunFolder) -> None:
    with folder.open_metrics() as metrics:
        metrics.append({"step": 1, "loss": 0.5, "name": "größe"})
        assert lines(folder) == [{"step": 1, "loss": 0.5, "name": "größe"}], "the line is there at once"
        metrics.append({"step": 2, "loss": math.nan, "parts": [math.inf, 1.0], "by": {"a": -math.inf}})
    assert lines(folder)[1] == {"step": 2, "loss": None, "parts": [None, 1.0], "by": {"a": None}}
    with folder.open_metrics() as metrics:
        metrics.append({"step": 3})
    assert [line["step"] for line in lines(folder)] == [1, 2, 3]


def test_unfinished_line_of_a_killed_writer_is_cut(folder: RunFolder) -> None:
    folder.metrics.write_text('{"step": 1}\n{"step": 2, "lo')
    with folder.open_metrics() as metrics:
        metrics.append({"step": 2})
    assert [line["step"] for line in lines(folder)] == [1, 2]


def test_environment(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-5f1c")
    folder.write_environment(device={"name": "cpu", "count": 0})
    text = folder.environment.read_text()
    environment = json.loads(text)
    assert "canary-5f1c" not in text
    assert environment["python"] == ".".join(str(part) for part in sys.version_info[:3])
    assert environment["cpu_count"] == os.cpu_count()
    assert environment["packages"]["torch"]
    assert environment["packages"]["deepspeed"] is None or environment["packages"]["deepspeed"]
    assert environment["device"] == {"name": "cpu", "count": 0}
    folder.write_environment()
    assert json.loads(folder.environment.read_text())["device"] is None


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_commit_of_the_checkout_that_tracks_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "vlmft"
    package.mkdir()
    (package / "__init__.py").touch()
    assert run_folder._checkout(package) is None, "no checkout"
    git(tmp_path, "init", "-q")
    assert run_folder._checkout(package) is None, "a checkout that does not track the package"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "untracked").touch()
    assert run_folder._checkout(package) == {"commit": commit, "dirty": False}
    (package / "__init__.py").write_text("changed")
    assert run_folder._checkout(package) == {"commit": commit, "dirty": True}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_folder._checkout(package) is None, "no git"


def test_wait_for_rank_0(tmp_path: Path) -> None:
    def rank_0() -> None:
        time.sleep(0.15)
        folder = RunFolder.create(tmp_path / "run", "seed: 3\n")
        time.sleep(0.15)
        folder.start()

    thread = threading.Thread(target=rank_0)
    thread.start()
    folder = RunFolder.wait_for(tmp_path / "run", timeout_s=10)
    assert folder.read_result()["state"] == "running"
    assert folder.config.read_text() == "seed: 3\n"
    thread.join()


def test_wait_for_does_not_take_an_earlier_run(folder: RunFolder) -> None:
    folder.start()
    folder.finish(0, "finished")
    with pytest.raises(ConfigError, match=r"rank 0 did not open .* within 0.1 s \(it holds a run that is 'done'\)"):
        RunFolder.wait_for(folder.path, timeout_s=0.1)


def test_wait_for_nobody(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\(it holds no run\).* give every rank the same run.dir"):
        RunFolder.wait_for(tmp_path, timeout_s=0)


def test_killed_while_writing_leaves_the_old_result(folder: RunFolder) -> None:
    code = """
import os, signal, sys
from vlmft.run_folder import RunFolder
folder = RunFolder.open(sys.argv[1])
folder.write_result(steps=1)
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
folder.write_result(steps=2)
"""
    done = subprocess.run([sys.executable, "-c", code, str(folder.path)])
    assert done.returncode == -signal.SIGKILL
    assert folder.read_result() == {"steps": 1}
