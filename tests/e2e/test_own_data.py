"""A user's own pictures, in a folder that VLMFT_PATH names."""

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Typed, copy_checkpoint, entry, read_lines
from tests.support import write_llava

FEW = ("trainer.max_steps=3", "global_batch_size=6", "trainer.num_workers=0", "evaluation.max_new_tokens=4")


@pytest.mark.slow
def test_mixed_with_another_dataset_on_a_checkpoint_of_ones_own(typed: Typed, root: Path, tmp_path: Path) -> None:
    """Single image, several images, no image, many turns and a system turn; held out is an entry as VILA writes it."""
    write_llava(tmp_path / "pictures")
    (root / "registry" / "datasets" / "mine.yaml").write_text(
        "mine:\n  _target_: vlmft.data.LLaVADataset\n  data_path: ../pictures/dataset.json\n  media_dir: ../pictures\n"
    )
    held = json.loads((write_llava(tmp_path / "vila")).read_text())
    for row in held:
        row["conversations"][-1]["value"] += " indeed"
    (tmp_path / "vila" / "dataset.json").write_text(json.dumps(held))
    entry(root, "vila", data_path=str(tmp_path / "vila/dataset.json"), media_dir=str(tmp_path / "vila"), is_video=False)
    weights = copy_checkpoint(tmp_path / "weights")

    ended = typed(
        "dataset=mine+shapes@0.1",
        "eval_dataset=vila",
        "model=qwen25vl",
        f"model.path={weights}",
        "precision=fp32",
        "recipe=lora_llm",
        *FEW,
        VLMFT_PATH=str(root),
    )
    assert ended.code == 0, ended.err
    assert f"model    Qwen25VL, {weights}, fp32" in ended.out
    assert "data     mine (1.0%) + shapes x 0.1 (99.0%); held out: 6" in ended.out
    assert "6 samples a step = 1 ranks x 6; 3 steps x 6 = 18 samples = 0.03 passes over 606" in ended.out
    assert "llm          │ lora r=16 │" in ended.out
    rows = [json.loads(line) for line in (ended.run / "predictions" / "tuned.jsonl").open()]
    assert [row["id"] for row in rows] == [
        f"vila/{name}" for name in ("one", "two", "none", "turns", "later", "system")
    ]
    assert [line["step"] for line in ended.lines if "loss" in line] == [1, 2, 3]
    provenance = json.loads((ended.run / "final" / "vlmft.json").read_text())
    assert set(provenance["datasets"]) == {"mine", "shapes"}
    assert provenance["base"]["path"] == str(weights)
    assert (ended.run / "final" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_a_share_held_out_of_ones_own(typed: Typed, root: Path) -> None:
    write_llava(root / "data")
    entry(root, "mine", data_path="data/dataset.json")
    ended = typed("dataset=mine", "holdout=0.4", "evaluation.base=false", *FEW, VLMFT_PATH=str(root))
    assert ended.code == 0, ended.err
    rows = [json.loads(line) for line in (ended.run / "predictions" / "tuned.jsonl").open()]
    held = {row["id"] for row in rows}
    assert 0 < len(held) < 6
    assert f"held out: {len(held)}" in ended.out and f"passes over {6 - len(held)}" in ended.out
    assert ended.result["eval"]["n"] == len(held)
    assert read_lines(ended.run)[-1]["eval/exact_match"] == pytest.approx(ended.result["eval"]["tuned"]["exact_match"])
