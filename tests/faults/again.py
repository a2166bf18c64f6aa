"""What a fault is followed by: the same command once more, and what an undisturbed one would have left."""

from pathlib import Path

import pytest

from tests.e2e.conftest import read_result, run_here
from tests.faults.conftest import SMALL, assert_same_run
from vlmft.training import commit

LORA = ("recipe=lora_llm", "recipe.llm.dropout=0.1")
TWO = ("strategy.ranks=2", "strategy.device=cpu", "trainer.num_workers=0")


def run_again(work: Path, *words: str) -> None:
    """The same command, with nothing in its way; in this process, which saves the seconds that imports take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        assert run_here(*SMALL, *words) == 0, read_result(work / "run")


def assert_goes_on(work: Path, *words: str) -> None:
    """The same command ends, to the bit, as if nothing had been."""
    run_again(work, *words)
    run_again(work, *words, "run.dir=undisturbed")
    assert_same_run(work / "undisturbed", work / "run")


def saved_step(run: Path) -> int:
    """The step of the newest checkpoint; all are whole."""
    found, rejected = commit.newest(run / "checkpoints")
    assert found is not None and rejected == []
    return found.step
