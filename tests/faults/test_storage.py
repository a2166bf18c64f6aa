"""A disk that is full: exit code 5 and a word, whatever is written; with room again the same command ends well.

A limit on the size of a file stands for the disk: a write across it is cut short, and the next one fails.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import read_result
from tests.faults.again import LORA, assert_goes_on
from tests.faults.conftest import Type, outcome

Injected = Callable[[str], dict[str, str]]

WORDS = ("trainer.num_workers=0", "trainer.max_steps=4")
# In front of a rank's code: `limit(n)` lets no file of it grow beyond n bytes, `everywhere` none of the driver either.
LIMIT = """
import resource
def limit(size, everywhere=False):
    hard = resource.RLIM_INFINITY
    for process in [os.getpid(), *([os.getppid()] if everywhere else [])]:
        resource.prlimit(process, resource.RLIMIT_FSIZE, (size, hard))
"""


@pytest.mark.slow
def test_while_a_line_of_metrics_is_written(type_: Type, work: Path, injected: Injected) -> None:
    """Half of it is there; the run that goes on cuts it off."""
    words = (*LORA, *WORDS, "trainer.save_every=2")
    full = injected(
        LIMIT
        + """
from vlmft.run_folder import MetricsWriter
append = MetricsWriter.append

def full(self, values):
    if values["step"] == 4:
        limit(self.path.stat().st_size + 50)
    append(self, values)

MetricsWriter.append = full
"""
    )
    code, err = type_(*words, **full).ended()
    assert code == 5, err
    assert outcome(work / "run") == ("failed", 5)
    reason = f"cannot write {work / 'run' / 'metrics.jsonl'}: File too large"
    assert read_result(work / "run")["reason"] == reason
    assert err == f"error: {reason}\n"
    lines = (work / "run" / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 4 and len(lines[-1]) == 50
    assert_goes_on(work, *words)


@pytest.mark.slow
@pytest.mark.parametrize("everywhere", [False, True], ids=["the rank", "the rank and the driver"])
def test_while_the_result_is_written(type_: Type, work: Path, injected: Injected, everywhere: bool) -> None:
    full = injected(
        LIMIT
        + f"""
from vlmft.run_folder import RunFolder
finish = RunFolder.finish

def full(*args, **fields):
    limit(0, everywhere={everywhere})
    finish(*args, **fields)

RunFolder.finish = full
"""
    )
    code, err = type_(*WORDS, **full).ended()
    assert code == 5, err
    reason = f"cannot write {work / 'run' / 'result.json'}: File too large"
    assert set(err.splitlines()) == {f"error: {reason}"}
    if everywhere:
        assert read_result(work / "run")["state"] == "running"
    else:
        assert outcome(work / "run") == ("failed", 5)
        assert read_result(work / "run")["reason"] == "rank 0 ended with exit code 5"
    assert_goes_on(work, *WORDS)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["fft", "lora_llm"])
def test_while_the_model_is_saved(type_: Type, work: Path, injected: Injected, recipe: str) -> None:
    full = injected(
        LIMIT
        + """
from vlmft.recipes import saved
save = saved.save

def full(*args):
    limit(20_000)
    save(*args)

saved.save = full
"""
    )
    words = (*WORDS, f"recipe={recipe}", "trainer.save_every=2")
    code, err = type_(*words, **full).ended()
    assert code == 5, err
    assert outcome(work / "run") == ("failed", 5)
    reason = read_result(work / "run")["reason"]
    assert reason.startswith(f"{work / 'run' / 'final'}: cannot be written: ") and "File too large" in reason
    assert err == f"error: {reason}\n"
    assert_goes_on(work, *words)


@pytest.mark.slow
def test_while_the_answers_are_written(type_: Type, work: Path, injected: Injected) -> None:
    full = injected(
        LIMIT
        + """
from vlmft.evaluation import answers as files
write = files.write_answers

def full(path, answers):
    limit(1500)
    write(path, answers * 10)

files.write_answers = full
"""
    )
    words = (*WORDS, "evaluation=generate", "evaluation.base=false", "evaluation.max_new_tokens=4")
    code, err = type_(*words, **full).ended()
    assert code == 5, err
    assert outcome(work / "run") == ("failed", 5)
    reason = f"cannot write {work / 'run' / 'predictions' / 'tuned.jsonl'}: File too large"
    assert read_result(work / "run")["reason"] == reason
    assert err == f"error: {reason}\n"
    assert_goes_on(work, *words)
    assert len((work / "run" / "predictions" / "tuned.jsonl").read_text().splitlines()) == 8
