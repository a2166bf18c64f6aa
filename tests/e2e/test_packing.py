"""`batching=packed` from the command line: it trains what rows train, and is refused before a rank starts."""

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Typed, losses, read_lines, run_here

SHORT = ("dataset.shapes.train_samples=64", "dataset.shapes.eval_samples=4", "trainer.max_steps=4", "preview=0")


@pytest.mark.slow
def test_packs_train_what_rows_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Several packs a step; the tuned model then answers, with keys and values kept, as one that was never packed."""
    for name, budget in (("grouped", 8192), ("packed", 300)):
        words = (f"batching={name}", f"batching.max_tokens={budget}", f"run.dir={tmp_path / name}")
        assert run_here(*SHORT, *words, "trainer.num_workers=0") == 0
    out = capsys.readouterr().out
    assert "attention: vision_tower vlmft_flash_segments; llm vlmft_packed" in out
    (line,) = [line for line in out.splitlines() if line.startswith("packed ")]
    assert "in a pack: its logits are as alone (within " in line
    assert losses(tmp_path / "packed") == pytest.approx(losses(tmp_path / "grouped"), rel=1e-5)
    lines = [line for line in read_lines(tmp_path / "packed") if "loss" in line]
    assert all(line["padding"] == 0 and 0.5 < line["pack_fill"] <= 1 and line["micro_batches"] > 1 for line in lines)
    answers = [(tmp_path / name / "predictions/tuned.jsonl").read_text() for name in ("grouped", "packed")]
    assert [json.loads(line)["prediction"] for line in answers[0].splitlines()] == [
        json.loads(line)["prediction"] for line in answers[1].splitlines()
    ]


def test_a_family_that_takes_no_packs_is_refused_before_a_rank_starts(typed: Typed) -> None:
    ended = typed("batching=packed", "model=tiny_qwen35")
    assert ended.code == 2
    said = "batching=packed: TinyQwen35 takes no packs: its linear layers carry their state from one sample of a row"
    assert ended.errors == [f"{said} into the next; take batching=grouped"]
    assert list(ended.folder.iterdir()) == []
