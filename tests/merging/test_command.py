"""The driver: what it refuses, and what it leaves however its children end."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.merging.support import request
from tests.support import literally
from vlmft import launch, lock
from vlmft.config.app import run_app
from vlmft.errors import ConfigError, PreemptedError
from vlmft.launch import RanksExit
from vlmft.merge import MergeConfig, begun, finished, free, merge


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run, as far as the driver looks."""
    folder = tmp_path / "run"
    (folder / "final").mkdir(parents=True)
    (folder / "final" / "vlmft.json").write_text("{}")
    (folder / "result.json").write_text(json.dumps({"state": "done"}))
    return folder


Child = Callable[[list[str], MergeConfig], RanksExit]


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Callable[[Child], list[str]]:
    """Stand in for the children: each call is one, given its command line and the request; returns their modules."""

    def install(child: Child) -> list[str]:
        started: list[str] = []

        def run_ranks(command: list[str], ranks: int, env: dict[str, str], shutdown_timeout_s: float) -> RanksExit:
            assert ranks == 1
            started.append(command[2])
            return child(command, MergeConfig.model_validate_json(Path(command[3]).read_text()))

        monkeypatch.setattr(launch, "run_ranks", run_ranks)
        return started

    return install


def wrote(command: list[str], told: MergeConfig) -> RanksExit:
    if command[2].endswith(".write"):
        (told.out / "config.json").write_text("{}")
    return RanksExit(0, None, "")


def type_merge(run: Path, out: Path, *words: str) -> int:
    return run_app("merge", MergeConfig, merge, argv=[f"run={run}", f"out={out}", *words])


def test_the_folder_gets_its_name_when_both_children_have_ended_well(
    run: Path, tmp_path: Path, children: Callable[[Child], list[str]]
) -> None:
    started = children(wrote)
    out = tmp_path / "deep" / "merged"
    assert type_merge(run, out, "samples=3") == 0
    assert started == ["vlmft.merging.write", "vlmft.merging.check"]
    assert [path.name for path in out.iterdir()] == ["config.json"]
    assert [path.name for path in out.parent.iterdir()] == ["merged"]


def test_an_empty_folder_is_taken_and_what_an_earlier_merge_left_is_removed(
    run: Path, tmp_path: Path, children: Callable[[Child], list[str]]
) -> None:
    children(wrote)
    out = tmp_path / "merged"
    out.mkdir()
    (tmp_path / "merged.partial").mkdir()
    (tmp_path / "merged.partial" / "old").touch()
    assert type_merge(run / "final", out) == 0
    assert [path.name for path in out.iterdir()] == ["config.json"]


def test_answers_that_differ_leave_the_folder_under_another_name(
    run: Path, tmp_path: Path, children: Callable[[Child], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    def child(command: list[str], told: MergeConfig) -> RanksExit:
        wrote(command, told)
        return RanksExit(3, 0, "") if command[2].endswith(".check") else RanksExit(0, None, "")

    children(child)
    assert type_merge(run, tmp_path / "merged") == 3
    partial = tmp_path / "merged.partial"
    assert partial.is_dir() and not (tmp_path / "merged").exists()
    said = f"error: nothing was written to {tmp_path / 'merged'}; what was written is left in {partial}\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(("code", "reason"), [(2, ""), (75, "rank 0 was killed by signal SIGTERM"), (137, "rank 0 x")])
def test_any_other_end_leaves_nothing(
    code: int,
    reason: str,
    run: Path,
    tmp_path: Path,
    children: Callable[[Child], list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    started = children(lambda *_: RanksExit(code, 0, reason))
    assert type_merge(run, tmp_path / "merged") == code
    assert started == ["vlmft.merging.write"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    lines = [f"error: {reason.replace('rank 0', 'vlmft.merging.write')}"] if reason else []
    assert capsys.readouterr().err.splitlines() == [*lines, f"error: nothing was written to {tmp_path / 'merged'}"]


def test_a_signal_between_the_children_leaves_nothing(
    run: Path, tmp_path: Path, children: Callable[[Child], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    def child(command: list[str], told: MergeConfig) -> RanksExit:
        wrote(command, told)
        os.kill(os.getpid(), signal.SIGTERM)
        return RanksExit(0, None, "")

    children(child)
    before = signal.getsignal(signal.SIGTERM)
    assert type_merge(run, tmp_path / "merged") == PreemptedError.exit_code
    assert signal.getsignal(signal.SIGTERM) is before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert capsys.readouterr().err == "error: stopped by SIGTERM\n"


def test_a_second_merge_into_the_same_folder_is_told_of_the_first(
    run: Path, tmp_path: Path, children: Callable[[Child], list[str]]
) -> None:
    out = tmp_path / "merged"
    holder = rf"process {os.getpid()} on {re.escape(socket.gethostname())} since \S+; wait for it, or stop it"

    def child(command: list[str], told: MergeConfig) -> RanksExit:
        ended = wrote(command, told)
        with pytest.raises(ConfigError, match=rf"^out={out}: {out}\.partial is in use by {holder}$"), begun(out):
            pass
        assert sorted(path.name for path in told.out.iterdir()) == [".merge.lock", "config.json"]
        return ended

    started = children(child)
    assert type_merge(run, out) == 0
    assert len(started) == 2
    assert [path.name for path in out.iterdir()] == ["config.json"]


@pytest.mark.parametrize("written", [False, True])
def test_a_merge_that_ends_while_another_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool) -> None:
    """The second merge has opened the lock's file when the first, which failed or was done, removes it."""
    out = tmp_path / "merged"
    real = lock.held

    @contextlib.contextmanager
    def held(folder: Path, role: str, named: str | None = None) -> Iterator[None]:
        with real(folder, role, named):
            if written:
                out.mkdir()
                (out / "config.json").touch()
            else:
                shutil.rmtree(folder)
            yield

    monkeypatch.setattr(lock, "held", held)
    said = "is not empty, and nothing is" if written else f"out={out}: another merge into it has ended just now; start"
    with pytest.raises(ConfigError, match=literally(said)), begun(out):
        pass
    assert not (tmp_path / "merged.partial").exists()


@pytest.mark.parametrize("state", ["running", "failed", "preempted", "stopped"])
@pytest.mark.parametrize("given", [".", "final"])
def test_a_run_that_is_not_finished(run: Path, state: str, given: str) -> None:
    (run / "result.json").write_text(json.dumps({"state": state}))
    message = f"the run is not finished (result.json says {state}); go on with its own command and run.dir={run}"
    with pytest.raises(ConfigError, match=literally(message)):
        finished(run / given)


def test_a_run_folder_or_its_final_or_a_final_alone(run: Path, tmp_path: Path) -> None:
    assert finished(run) == finished(run / "final") == run / "final"
    (run / "final").rename(tmp_path / "mine")
    assert finished(tmp_path / "mine") == tmp_path / "mine"


def test_no_run(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=literally(f"run={tmp_path / 'none'}: there is no such folder")):
        finished(tmp_path / "none")
    (run / "final" / "vlmft.json").unlink()
    with pytest.raises(ConfigError, match="holds no saved model; expected a run folder, or its final/"):
        finished(run)


def test_an_out_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is not empty, and nothing is overwritten; choose another name, or empty it"):
        free(tmp_path)
    with pytest.raises(ConfigError, match="file: is a file or a link, not a folder"):
        free(tmp_path / "file")
    assert free(tmp_path / "new") == tmp_path / "new"


def test_a_shard_size_is_a_number_with_a_unit(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_shard_size"):
        request(run, tmp_path / "merged", max_shard_size="lots")


def test_run_and_out_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app("merge", MergeConfig, merge, argv=[]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: run: a value is required (run=...)",
        "error: out: a value is required (out=...)",
    ]


def test_a_run_whose_path_holds_the_word_dir(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`run` is a path here, where training has `run.dir`."""
    assert type_merge(tmp_path / "dir-1", tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith(f"error: run={tmp_path / 'dir-1'}: there is no such folder")
