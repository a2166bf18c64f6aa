import os
import threading

import pytest

from vlmft.data.sources import reading
from vlmft.data.sources.reading import FileState, open_to_read, read_at
from vlmft.errors import DataError


def written(path, data=b"0123456789"):
    path.write_bytes(data)
    return path, FileState.of(path)


def test_bytes_at_an_offset(tmp_path):
    file = written(tmp_path / "a")
    assert read_at(*file, 3, 4) == b"3456"
    assert read_at(*file, 10, 0) == b""
    with pytest.raises(DataError, match=r"/a: ends at byte 10; expected 4 bytes from 8"):
        read_at(*file, 8, 4)


def test_what_cannot_be_read_says_so(tmp_path):
    for look in (FileState.of, lambda path: open_to_read(path).__enter__()):
        with pytest.raises(DataError, match=r"/none: cannot be read: No such file or directory; give data_path"):
            look(tmp_path / "none")


def test_a_change_is_noticed_before_and_after_the_first_read(tmp_path):
    path, state = written(tmp_path / "a")
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=r"/a: has changed since it was opened \(10 bytes then, 11 now\); leave data"):
        read_at(path, state, 0, 1)
    state = FileState.of(path)
    assert read_at(path, state, 0, 1) == b"0"
    os.truncate(path, 5)
    with pytest.raises(DataError, match=r"\(11 bytes then, 5 now\)"):
        read_at(path, state, 0, 1)


def test_another_mode_is_no_change_of_the_content(tmp_path):
    path, state = written(tmp_path / "a")
    path.chmod(0o400)
    assert read_at(path, state, 0, 2) == b"01"


def test_few_files_are_open_however_many_are_read(tmp_path):
    reading._opened.cache_clear()
    before = len(os.listdir("/proc/self/fd"))
    files = [written(tmp_path / f"{n}", bytes([n])) for n in range(3 * reading.MAX_OPEN)]
    for _ in range(2):
        assert [read_at(*file, 0, 1) for file in files] == [bytes([n]) for n in range(len(files))]
    assert len(os.listdir("/proc/self/fd")) - before <= reading.MAX_OPEN
    reading._opened.cache_clear()
    assert len(os.listdir("/proc/self/fd")) == before


def test_threads_read_each_others_files_while_they_fall_out_of_the_cache(tmp_path):
    files = [written(tmp_path / f"{n}", bytes([n]) * 1000) for n in range(2 * reading.MAX_OPEN)]
    wrong = []

    def work():
        for _ in range(5):
            for n, file in enumerate(files):
                if read_at(*file, 0, 1000) != bytes([n]) * 1000:
                    wrong.append(n)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_second_change_within_a_tick_of_the_clock_shows(tmp_path):
    for number in range(20):
        path, state = written(tmp_path / f"{number}", b"old")
        state.settle()
        path.write_bytes(b"new")
        assert FileState.of(path) != state
