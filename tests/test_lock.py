"""One run at a time on one folder, and no lock that outlives its holder."""

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import literally
from vlmft import lock
from vlmft.errors import ConfigError, StorageError


def in_a_child(folder: Path, role: str = lock.DRIVER) -> Callable[[], None]:
    """Hold the lock in another process; returns what SIGKILLs that."""
    read, written = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with lock.held(folder, role):
                os.write(written, b"x")
                signal.pause()
        finally:
            os._exit(0)
    assert os.read(read, 1) == b"x"

    def kill() -> None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    return kill


def test_a_second_holder_is_told_who_the_first_is(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    kill = in_a_child(folder)
    found = json.loads((folder / ".driver.lock").read_text())
    expected = (
        f"run.dir={folder} is in use by process {found['pid']} on {socket.gethostname()} since {found['since']}; "
        "wait for it, or stop it"
    )
    try:
        with pytest.raises(ConfigError, match=f"^{literally(expected)}$"), lock.held(folder, lock.DRIVER):
            pass
        with pytest.raises(ConfigError, match="^out=there is in use by"), lock.held(folder, lock.DRIVER, "out=there"):
            pass
    finally:
        kill()


def test_none_outlives_a_killed_holder(tmp_path: Path) -> None:
    in_a_child(tmp_path)()
    with lock.held(tmp_path, lock.DRIVER):
        assert json.loads((tmp_path / ".driver.lock").read_text())["pid"] == os.getpid()


def test_is_released_at_the_end_and_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock.held(tmp_path, lock.DRIVER):
        raise ZeroDivisionError
    with lock.held(tmp_path, lock.DRIVER):
        pass


def test_the_roles_are_apart(tmp_path: Path) -> None:
    """A driver holds its own while rank 0 holds the other."""
    kill = in_a_child(tmp_path, lock.RANK)
    try:
        with lock.held(tmp_path, lock.DRIVER):
            pass
        with pytest.raises(ConfigError, match="is in use by process"), lock.held(tmp_path, lock.RANK):
            pass
    finally:
        kill()


def test_says_so_where_the_holder_cannot_be_read(tmp_path: Path) -> None:
    kill = in_a_child(tmp_path)
    (tmp_path / ".driver.lock").write_text("")
    try:
        with pytest.raises(ConfigError, match="is in use by another process; "), lock.held(tmp_path, lock.DRIVER):
            pass
    finally:
        kill()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match="is a file, not a folder"), lock.held(tmp_path / "run", lock.DRIVER):
        pass


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match=r"\.driver\.lock: cannot be opened: Not a directory$"),
        lock.held(tmp_path / "file" / "run", lock.DRIVER),
    ):
        pass


def test_one_may_ask_whether_it_is_held(tmp_path: Path) -> None:
    assert not lock.is_held(tmp_path, lock.RANK)
    with lock.held(tmp_path, lock.RANK):
        assert lock.is_held(tmp_path, lock.RANK) and not lock.is_held(tmp_path, lock.DRIVER)
    assert not lock.is_held(tmp_path, lock.RANK)
