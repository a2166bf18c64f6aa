"""A checkpoint is all there or not there: whatever is done to its files, and wherever its writer dies."""

import builtins
import contextlib
import errno
import io
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.support import literally
from vlmft.errors import StorageError
from vlmft.training import commit
from vlmft.training.commit import MANIFEST, Committed, checkpoint_folder, newest, rotate, verify, write_each

FILES = {"weights.bin": b"weights" * 100, "state/rank-0.bin": b"state" * 50}


def write(checkpoints: Path, step: int, keep: int | None = None, text: bytes = b"") -> Path:
    """Write a checkpoint as a trainer does it; rotate where `keep` is given."""
    folder = checkpoint_folder(checkpoints, step)
    partial = commit.begin(folder)
    (partial / "state").mkdir()
    write_each(partial, {name: writer(content + text) for name, content in FILES.items()})
    assert commit.commit(folder, step, {"fingerprint": {"seed": step}}) == Committed(
        folder, step, {"fingerprint": {"seed": step}}
    )
    if keep:
        rotate(checkpoints, keep, folder)
    return folder


def writer(content: bytes) -> Callable[[Path], None]:
    def to(path: Path) -> None:
        path.write_bytes(content)

    return to


def names(checkpoints: Path) -> list[str]:
    return sorted(path.name for path in checkpoints.iterdir())


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


class TestPublish:
    def begun(self, folder: Path) -> Path:
        partial = commit.begin(folder)
        (partial / "below").mkdir()
        (partial / "below" / "file").write_text("x")
        return partial

    def test_gives_the_files_their_name(self, tmp_path: Path) -> None:
        for folder in (tmp_path / "new", tmp_path / "empty"):
            self.begun(folder)
            if folder.name == "empty":
                folder.mkdir()
            commit.publish(folder)
            assert (folder / "below" / "file").read_text() == "x"
        assert names(tmp_path) == ["empty", "new"]

    def test_a_name_that_has_been_taken_is_left_alone(self, tmp_path: Path) -> None:
        partial = self.begun(tmp_path / "taken")
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken" / "mine").touch()
        with pytest.raises(StorageError, match="taken.partial: cannot become .*taken"):
            commit.publish(tmp_path / "taken")
        assert names(tmp_path / "taken") == ["mine"] and partial.is_dir()


class TestVerify:
    def test_gives_what_was_committed(self, checkpoints: Path) -> None:
        folder = write(checkpoints, 7)
        assert folder.name == "step-00000007"
        assert verify(folder) == Committed(folder, 7, {"fingerprint": {"seed": 7}})
        assert names(checkpoints) == ["step-00000007"]

    @pytest.mark.parametrize("name", list(FILES))
    def test_a_flipped_bit_is_found(self, checkpoints: Path, name: str) -> None:
        path = write(checkpoints, 7) / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(StorageError, match=f"^{literally(str(path))}: its bytes are not those that were written$"):
            verify(path.parents[name.count("/")])

    def test_a_cut_file_is_found(self, checkpoints: Path) -> None:
        path = write(checkpoints, 7) / "weights.bin"
        os.truncate(path, 300)
        with pytest.raises(StorageError, match=f"^{literally(str(path))}: has 300 bytes, 700 were written$"):
            verify(path.parent)

    def test_a_missing_file_is_found(self, checkpoints: Path) -> None:
        path = write(checkpoints, 7) / "weights.bin"
        path.unlink()
        with pytest.raises(StorageError, match=f"^{literally(str(path))}: is missing$"):
            verify(path.parent)

    def test_a_file_that_cannot_be_read(self, checkpoints: Path) -> None:
        path = write(checkpoints, 7) / "weights.bin"
        path.unlink()
        path.mkdir()
        with pytest.raises(StorageError, match=f"^{literally(str(path))}: cannot be read: Is a directory$"):
            verify(path.parent)

    def test_without_a_manifest_it_does_not_count(self, checkpoints: Path) -> None:
        folder = write(checkpoints, 7)
        (folder / MANIFEST).unlink()
        expected = f"{folder}: has no manifest.json: it was never finished, or is no checkpoint"
        with pytest.raises(StorageError, match=f"^{literally(expected)}$"):
            verify(folder)

    def test_a_wrong_path(self, checkpoints: Path) -> None:
        with pytest.raises(StorageError, match=f"^{literally(str(checkpoints))}: there is no such checkpoint$"):
            verify(checkpoints)

    def test_every_flipped_byte_of_the_manifest_is_found(self, checkpoints: Path) -> None:
        """The step, a fact, a file's name or the manifest's own hash: each is as good as lost."""
        folder = write(checkpoints, 7)
        manifest = folder / MANIFEST
        content = manifest.read_bytes()
        written = json.loads(content)
        for place in range(len(content)):
            for bit in (1, 0x80):
                damaged = bytearray(content)
                damaged[place] ^= bit
                manifest.write_bytes(damaged)
                with contextlib.suppress(ValueError):
                    if json.loads(damaged) == written:  # one kind of space became another
                        continue
                with pytest.raises(StorageError, match=f"^{literally(str(manifest))}: is damaged "):
                    verify(folder)


class TestNewest:
    def test_of_none_is_none(self, checkpoints: Path) -> None:
        assert newest(checkpoints) == (None, [])

    def test_falls_back_and_says_why(self, checkpoints: Path) -> None:
        folders = [write(checkpoints, step) for step in (5, 10, 15, 20)]
        (folders[1] / "weights.bin").unlink()
        (folders[2] / MANIFEST).unlink()
        os.truncate(folders[3] / "weights.bin", 1)
        found, rejected = newest(checkpoints)
        assert found is not None and found.folder == folders[0] and found.step == 5
        assert rejected == [
            f"{folders[3] / 'weights.bin'}: has 1 bytes, 700 were written",
            f"{folders[2]}: has no manifest.json: it was never finished, or is no checkpoint",
            f"{folders[1] / 'weights.bin'}: is missing",
        ]

    def test_where_all_are_bad(self, checkpoints: Path) -> None:
        (write(checkpoints, 5) / MANIFEST).unlink()
        found, rejected = newest(checkpoints)
        assert found is None and len(rejected) == 1

    def test_does_not_look_at_what_is_unfinished(self, checkpoints: Path) -> None:
        folder = write(checkpoints, 5)
        shutil.copytree(folder, commit.partial_folder(checkpoint_folder(checkpoints, 10)))
        found, rejected = newest(checkpoints)
        assert found is not None and found.step == 5 and rejected == []


class TestRotate:
    def test_keeps_the_newest_and_removes_what_is_unfinished(self, checkpoints: Path) -> None:
        for step in (5, 10, 15):
            write(checkpoints, step)
        commit.begin(checkpoint_folder(checkpoints, 12))
        rotate(checkpoints, 2, checkpoint_folder(checkpoints, 15))
        assert names(checkpoints) == ["step-00000010", "step-00000015"]

    def test_never_the_one_just_written_for_a_damaged_later_one(self, checkpoints: Path) -> None:
        """10 was damaged, the run went on from 5 and was stopped at 7: 7 is what there is."""
        write(checkpoints, 5)
        (write(checkpoints, 10) / "weights.bin").unlink()
        write(checkpoints, 7, keep=1)
        assert names(checkpoints) == ["step-00000007"]

    def test_what_cannot_be_removed(self, checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folders = [write(checkpoints, step) for step in (5, 10)]

        def refuse(path: Path) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr(shutil, "rmtree", refuse)
        with pytest.raises(
            StorageError, match=r"step-00000005\.removed\.partial: cannot be removed: Permission denied"
        ):
            rotate(checkpoints, 1, folders[1])
        assert newest(checkpoints)[0] == verify(folders[1])


def test_the_same_step_again_replaces_what_was_there(checkpoints: Path) -> None:
    folder = write(checkpoints, 5)
    (folder / "weights.bin").unlink()
    write(checkpoints, 5, text=b"again")
    assert names(checkpoints) == ["step-00000005"]
    assert verify(folder).step == 5
    assert (folder / "weights.bin").read_bytes().endswith(b"again")


def test_begin_removes_what_a_crash_left(checkpoints: Path) -> None:
    folder = checkpoint_folder(checkpoints, 5)
    (commit.begin(folder) / "half").write_bytes(b"half")
    assert list(commit.begin(folder).iterdir()) == []


def test_begin_where_nothing_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="step-00000005.partial: cannot be made: Not a directory$"):
        commit.begin(checkpoint_folder(tmp_path / "file", 5))


# The calls by which commit.py changes anything on the disk.
CALLS = [
    (os, "open"),
    (os, "fsync"),
    (os, "mkdir"),
    (os, "rename"),
    (os, "unlink"),
    (os, "rmdir"),
    (io, "open"),
    (builtins, "open"),
]


def killed_at(call: int, action: Callable[[], None], partly: bool = True) -> bool:
    """Carry out `action` in a child that is SIGKILLed just before its `call`-th file operation; False if it had fewer.

    `partly` cuts what is written into the file last opened, as a crash of the machine may.
    """
    child = os.fork()
    if child == 0:
        left = call

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def operation(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **kwargs)

            return operation

        try:
            for module, name in CALLS:
                setattr(module, name, counted(getattr(module, name)))
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize(
    ("before", "step", "keep"),
    [((), 5, 1), ((5,), 10, 1), ((5, 10), 15, 2), ((5, 10, 15), 20, 1)],
    ids=["the first", "keep one", "keep two", "several to remove"],
)
def test_a_crash_anywhere_costs_one_checkpoint_at_most(
    tmp_path: Path, before: tuple[int, ...], step: int, keep: int
) -> None:
    """SIGKILL at every file operation of a save and of the rotation after it: the last or the new one is whole."""
    steps: list[int | None] = []
    for call in range(1, 1000):
        checkpoints = tmp_path / str(call)
        for earlier in before:
            write(checkpoints, earlier)
        killed = killed_at(call, lambda: write(checkpoints, step, keep))  # noqa: B023 (called at once)
        found, rejected = newest(checkpoints)
        assert rejected == [], f"killed at file operation {call}"
        steps.append(found.step if found else None)
        if not killed:
            break
        # The run that goes on saves the same step, and leaves no trace of the crash.
        write(checkpoints, step, keep)
        assert names(checkpoints) == [f"step-{s:08d}" for s in (*before, step)][-keep:]
        shutil.rmtree(checkpoints)
    last = before[-1] if before else None
    assert len(steps) > 15
    assert steps == [last] * steps.count(last) + [step] * steps.count(step)
    assert steps.count(step) >= 2


def test_a_crash_while_a_damaged_checkpoint_is_replaced(tmp_path: Path) -> None:
    """10 was damaged, the run went on from 5 and saves 10 again."""
    steps = []
    for call in range(1, 1000):
        checkpoints = tmp_path / str(call)
        write(checkpoints, 5)
        os.truncate(write(checkpoints, 10) / "weights.bin", 1)
        killed = killed_at(call, lambda: write(checkpoints, 10, keep=2))  # noqa: B023 (called at once)
        found, _ = newest(checkpoints)
        assert found is not None
        steps.append(found.step)
        if not killed:
            break
    assert set(steps) == {5, 10}


def in_a_child(action: Callable[[], None]) -> str:
    """What `action` raises in a process of its own, as `<type> <exit code>: <message>`; empty where it does not."""
    read, written = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException as error:
            code = getattr(error, "exit_code", None)
            os.write(written, f"{type(error).__name__} {code}: {error}".encode())
        finally:
            os._exit(0)
    os.close(written)
    with open(read, "rb") as stream:
        said = stream.read().decode()
    os.waitpid(child, 0)
    return said


def full_at(size: int) -> None:
    """A disk that takes no more than `size` bytes a file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


TENSOR = torch.arange(100_000, dtype=torch.float32)


@pytest.mark.parametrize(
    "write_file",
    [
        lambda path: path.write_bytes(b"x" * 400_000),
        lambda path: save_file({"weight": TENSOR}, path),
        lambda path: torch.save({"weight": TENSOR}, path),
    ],
    ids=["bytes", "safetensors", "torch.save"],
)
def test_a_full_disk_is_a_storage_error(checkpoints: Path, write_file: Callable[[Path], None]) -> None:
    before = write(checkpoints, 5)
    folder = checkpoint_folder(checkpoints, 10)

    def save() -> None:
        full_at(100_000)
        partial = commit.begin(folder)
        write_each(partial, {"trained": write_file})

    said = in_a_child(save)
    assert said.startswith(f"StorageError 5: {commit.partial_folder(folder) / 'trained'}: cannot be written: "), said
    assert newest(checkpoints) == (verify(before), [])


def test_a_disk_that_is_full_at_the_manifest(checkpoints: Path) -> None:
    before = write(checkpoints, 5)

    def save() -> None:
        folder = checkpoint_folder(checkpoints, 10)
        write_each(commit.begin(folder), {str(n): writer(b"") for n in range(20)})
        full_at(1000)
        commit.commit(folder, 10, {})

    said = in_a_child(save)
    assert said.startswith("StorageError 5: ") and said.endswith(
        "step-00000010.partial: cannot be written: File too large; nothing earlier was touched"
    )
    assert newest(checkpoints) == (verify(before), [])
