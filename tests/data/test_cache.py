import multiprocessing
import stat
import time
from pathlib import Path

import pytest

from vlmft.cache import cache_dir, make_once
from vlmft.errors import StorageError


def test_the_cache_folder_follows_xdg(monkeypatch, tmp_path):
    assert cache_dir() == tmp_path / "cache" / "vlmft"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "vlmft"
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert cache_dir() == tmp_path / ".cache" / "vlmft"


def test_a_folder_is_made_once(tmp_path):
    calls = []

    def build(new: Path) -> None:
        calls.append(new)
        (new / "file").write_text("x")

    for _ in range(2):
        assert (make_once(tmp_path / "deep" / "folder", build) / "file").read_text() == "x"
    assert len(calls) == 1
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["folder"]
    assert stat.S_IMODE((tmp_path / "deep" / "folder").stat().st_mode) & 0o700 == 0o700


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def build(new: Path) -> None:
        (new / "half").write_text("x")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        make_once(tmp_path / "made" / "folder", build)
    assert list((tmp_path / "made").iterdir()) == []


def test_what_a_crash_left_behind_is_not_used(tmp_path):
    (tmp_path / ".folder.0123.tmp").mkdir()
    (tmp_path / ".folder.0123.tmp" / "half").write_text("x")
    made = make_once(tmp_path / "folder", lambda new: None)
    assert list(made.iterdir()) == []


def test_a_folder_that_cannot_be_written_says_what_to_set(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="set XDG_CACHE_HOME"):
        make_once(tmp_path / "file" / "folder", lambda new: None)


def _build_slowly(folder: Path, barrier, results) -> None:
    def build(new: Path) -> None:
        for part in range(3):
            (new / f"{part}").write_text(str(new))
            barrier.wait(30)  # both are inside build at the same time
            time.sleep(0.01)

    made = make_once(folder, build)
    results.put((made, sorted(path.name for path in made.iterdir()), {path.read_text() for path in made.iterdir()}))


def test_two_processes_at_once_share_one_result(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    both = [
        context.Process(target=_build_slowly, args=(tmp_path / "folder", barrier, results), daemon=True)
        for _ in range(2)
    ]
    for process in both:
        process.start()
    first, second = results.get(timeout=60), results.get(timeout=60)
    for process in both:
        process.join(30)
        assert process.exitcode == 0
    assert first == second
    assert first[1] == ["0", "1", "2"]
    assert len(first[2]) == 1, "the files come from one process alone"
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["folder"]
