"""`python -m vlmft.merge`, as a user types it after a short training."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Typed, copy_checkpoint, run_here, until

MERGE = "vlmft.merge"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps on a base that may be changed; the run folder."""
    folder = tmp_path_factory.mktemp("trained")
    base = copy_checkpoint(folder / "base")
    code = run_here(
        f"run.dir={folder / 'run'}",
        "model=qwen25vl",
        f"model.path={base}",
        "precision=fp32",
        "recipe=lora_vt_llm",
        "trainer.max_steps=2",
        "trainer.num_workers=0",
        "dataset.shapes.train_samples=64",
        "dataset.shapes.eval_samples=12",
        "evaluation.max_new_tokens=4",
    )
    assert code == 0
    return folder / "run"


@pytest.mark.slow
def test_merges_by_command_and_only_once(typed: Typed, trained: Path) -> None:
    ended = typed(f"run={trained}", "out=merged", "max_new_tokens=4", module=MERGE)
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0] == f"run      {trained / 'final'}"
    assert lines[2] == "answered 8 held-out samples, with the trained model"
    assert lines[3].startswith("compared 8 of 8 answers are token for token the trained model's; their logits differ")
    assert lines[4] == f"merged   {ended.folder / 'merged'}"
    assert [path.name for path in ended.folder.iterdir()] == ["merged"]
    card = (ended.folder / "merged" / "README.md").read_text()
    result = json.loads((trained / "result.json").read_text())
    low, high = result["eval"]["intervals"]["tuned"]["exact_match"]
    assert f"[{low:.3f}, {high:.3f}] |" in card and "| shapes | 64 | " in card
    again = typed(f"run={trained}", "out=merged", module=MERGE)
    assert again.code == 2
    assert again.errors == [
        f"out={ended.folder / 'merged'}: is not empty, and nothing is overwritten; choose another name, or empty it"
    ]


def test_another_merge_is_refused_meanwhile_and_a_signal_leaves_nothing_behind(
    started: Callable[..., Any], typed: Typed, work: Path, trained: Path
) -> None:
    process = started(f"run={trained}", "out=merged", module=MERGE)
    holder = work / "merged.partial" / ".merge.lock"
    until(lambda: holder.exists() and holder.stat().st_size, "the merge to begin")
    (error,) = typed(f"run={trained}", "out=merged", module=MERGE).errors
    assert error.startswith(f"out={work}/merged: {work}/merged.partial is in use by process {process.pid} on ")
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 75
    assert list(work.iterdir()) == []
