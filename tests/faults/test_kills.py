"""SIGKILL while a checkpoint is saved; the same command goes on, and ends to the bit as if nothing had been."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import losses, read_result
from tests.faults.again import LORA, assert_goes_on, saved_step
from tests.faults.conftest import Type, outcome

Injected = Callable[[str], dict[str, str]]

# Before which call of a save it dies, in order: tests/training/test_commit.py dies at every single one, this at one of
# each kind. `half`: once half of the file is written.
MOMENTS = [
    ("mkdir", 1),
    ("save_file half", 1),
    ("torch.save half", 2),
    ("fsync", 1),
    ("write_text", 1),  # the manifest
    ("rename", 1),
    ("rename", 2),  # committed; the checkpoint before it is taken away
    ("rmtree", 1),
]
COMMITTED = MOMENTS.index(("rename", 2))

DYING = """
import pathlib, shutil, signal
import torch
from vlmft.training import checkpoint, commit
begin = commit.begin
moment, left, saves = os.environ["DIES_AT"], int(os.environ["DIES_AT_CALL"]), []

def dying(name, original):
    def operation(*args, **kwargs):
        global left
        if len(saves) == 2 and moment.split()[0] == name:
            left -= 1
            if left == 0:
                if moment.endswith("half"):
                    original(*args, **kwargs)
                    os.truncate(args[1], os.path.getsize(args[1]) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)
    return operation

def counted(folder):
    saves.append(folder)
    return begin(folder)

commit.begin = counted
os.mkdir, os.fsync, os.rename = dying("mkdir", os.mkdir), dying("fsync", os.fsync), dying("rename", os.rename)
shutil.rmtree = dying("rmtree", shutil.rmtree)
pathlib.Path.write_text = dying("write_text", pathlib.Path.write_text)
torch.save = dying("torch.save", torch.save)
checkpoint.save_file = dying("save_file", checkpoint.save_file)
"""


@pytest.mark.slow
def test_at_every_kind_of_file_operation_of_a_save(type_: Type, work: Path, injected: Injected) -> None:
    """One run of many lives; each dies in the second checkpoint that it saves."""
    words = (*LORA, "trainer.num_workers=0", "trainer.save_every=1", "trainer.keep=1", "trainer.max_steps=20")
    dying = injected(DYING)
    step = 0
    for number, (moment, call) in enumerate(MOMENTS):
        code, err = type_(*words, **dying, DIES_AT=moment, DIES_AT_CALL=str(call)).ended()
        assert code == 137, (moment, call, err)
        assert outcome(work / "run") == ("failed", 137)
        assert read_result(work / "run")["reason"] == "rank 0 was killed by signal SIGKILL"
        step += 1 if number < COMMITTED else 2
        assert saved_step(work / "run") == step, (moment, call)
    assert_goes_on(work, *words)
    assert len(losses(work / "run")) == 20
    assert [path.name for path in (work / "run" / "checkpoints").iterdir()] == ["step-00000019"]
