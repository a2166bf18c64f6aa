import multiprocessing
import os
import pickle
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from vlmft.cache import cache_dir
from vlmft.data.sources import index as module
from vlmft.data.sources.index import IndexOf, OpenIndex, compact
from vlmft.errors import DataError, StorageError


def count_bytes(path, log=None):
    """How often each byte is in a file."""
    if log is not None:
        log.append(path)
    counts = np.bincount(np.frombuffer(path.read_bytes(), np.uint8), minlength=256)
    return {"counts": compact(counts), "none": np.empty(0, np.uint8)}, {"said": "é"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"aabc")
    return path


def kept() -> list[Path]:
    return [path for path in (cache_dir() / "indexes").rglob("*") if path.is_file()]


def test_an_index_is_made_once_and_kept(file):
    log = []
    of = IndexOf(file, "bytes", partial(count_bytes, log=log))
    assert not of.exists()
    first, second = of.get(), of.get()
    assert of.exists()
    for found in (first, second):
        assert found.arrays["counts"][[97, 98, 99, 100]].tolist() == [2, 1, 1, 0]
        assert found.arrays["none"].tolist() == []
        assert found.notes["said"] == "é"
        assert found.state.size == 4
    assert len(log) == len(kept()) == 1


def test_it_is_mapped_and_not_copied(file):
    counts = IndexOf(file, "bytes", count_bytes).get().arrays["counts"]
    assert not counts.flags.owndata and not counts.flags.writeable


def test_another_purpose_is_another_index(file):
    for purpose in ("bytes", "other bytes"):
        IndexOf(file, purpose, count_bytes).get()
    assert len(kept()) == 2


@pytest.mark.parametrize("change", ["size", "time", "content with size and time kept"])
def test_it_is_made_anew_when_the_file_changes(file, change):
    of = IndexOf(file, "bytes", count_bytes)
    before = file.stat()
    assert of.get().arrays["counts"][97] == 2
    file.write_bytes(b"aaaa" if change.startswith("content") else b"aaaaa")
    if change.startswith("content"):
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert file.stat().st_mtime_ns == before.st_mtime_ns and file.stat().st_size == before.st_size
    elif change == "time":
        os.utime(file, ns=(0, 0))
    assert of.get().arrays["counts"][97] == (4 if change.startswith("content") else 5)


@pytest.mark.parametrize("damage", [b"", b"x", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}", None])
def test_a_damaged_index_is_made_anew_with_a_word(file, damage, caplog):
    of = IndexOf(file, "bytes", count_bytes)
    of.get()
    (where,) = kept()
    module._mapped.cache_clear()
    where.write_bytes(where.read_bytes()[:-1] if damage is None else damage)
    assert of.get().arrays["counts"][97] == 2
    assert "is damaged" in caplog.text and str(where.parent) in caplog.text
    module._mapped.cache_clear()
    caplog.clear()
    assert of.get().arrays["counts"][97] == 2
    assert caplog.text == ""


def test_a_file_that_changes_while_it_is_indexed_is_refused(file):
    def build(path):
        built = count_bytes(path)
        path.write_bytes(b"longer")
        return built

    for get in (IndexOf(file, "bytes", build).get, IndexOf(file, "bytes", build).build_now):
        file.write_bytes(b"aabc")
        with pytest.raises(DataError, match=r"/file: has changed since it was opened \(4 bytes then, 6 now\)"):
            get()
    assert kept() == []


def test_a_cache_folder_that_cannot_be_written_says_what_to_set(file):
    cache_dir().parent.mkdir()
    cache_dir().write_text("")
    with pytest.raises(StorageError, match="set XDG_CACHE_HOME to a folder with space"):
        IndexOf(file, "bytes", count_bytes).get()


def build_slowly(path, started):
    started.set()
    time.sleep(30)


def test_killed_while_indexing_leaves_nothing_half(file):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    child = context.Process(target=IndexOf(file, "bytes", partial(build_slowly, started=started)).get)
    child.start()
    assert started.wait(20)
    os.kill(child.pid, signal.SIGKILL)
    child.join(20)
    assert kept() == []
    assert IndexOf(file, "bytes", count_bytes).get().arrays["counts"][97] == 2
    assert len(kept()) == 1


def write_half(made, built, path):
    (made / "arrays.safetensors").write_bytes(b"half")
    time.sleep(30)


def test_killed_while_writing_leaves_nothing_that_is_used(file, monkeypatch):
    context = multiprocessing.get_context("fork")
    write = module._write
    monkeypatch.setattr(module, "_write", write_half)
    child = context.Process(target=IndexOf(file, "bytes", count_bytes).get)
    child.start()
    for _ in range(1000):
        if kept():
            break
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.join(20)
    monkeypatch.setattr(module, "_write", write)
    assert IndexOf(file, "bytes", count_bytes).get().arrays["counts"][97] == 2


def test_what_nobody_has_read_for_a_month_goes(file):
    of = IndexOf(file, "bytes", count_bytes)
    of.get()
    (old,) = kept()
    file.write_bytes(b"other")
    of.get()
    assert old.exists(), "another machine may have it mapped"
    for path in (old, old.parent):
        os.utime(path, (time.time() - 31 * 24 * 3600,) * 2)
    file.write_bytes(b"another")
    of.get()
    assert not old.parent.exists() and len(kept()) == 2


def test_an_open_index_is_found_again_where_it_travels(file):
    opened = OpenIndex(IndexOf(file, "bytes", count_bytes), keep=True)
    again = pickle.loads(pickle.dumps(opened))
    assert again.now.arrays["counts"].tolist() == opened.now.arrays["counts"].tolist()
    unkept = OpenIndex(IndexOf(file, "bytes", count_bytes), keep=False)
    assert pickle.loads(pickle.dumps(unkept)).now.arrays["counts"][97] == 2
    assert len(kept()) == 1
    travelled = pickle.loads(pickle.dumps(opened))
    file.write_bytes(b"aabcd")
    with pytest.raises(DataError, match="has changed since it was opened"):
        _ = travelled.now
    assert opened.now.arrays["counts"][97] == 2


@pytest.mark.parametrize(
    ("values", "dtype"), [([], "u1"), ([255], "u1"), ([256, 0], "u2"), ([65536], "u4"), ([2**32], "u8")]
)
def test_numbers_take_the_least_room(values, dtype):
    small = compact(np.array(values, np.int64))
    assert small.dtype == np.dtype(dtype) and small.tolist() == values
