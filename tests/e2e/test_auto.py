"""`model=auto` from the command line: a checkpoint's folder is trained and merged, or refused by name."""

from pathlib import Path

import pytest

import vlmft
from tests.e2e.conftest import Typed, read_result, run_here, typed_in
from tests.models.autos import NAMES

SHORT = (
    "model=auto",
    "precision=fp32",
    "recipe=lora_vt_llm",
    "optim.lr=1e-2",
    "trainer.max_steps=3",
    "trainer.num_workers=0",
    "dataset.shapes.train_samples=64",
    "dataset.shapes.eval_samples=12",
    "evaluation.max_new_tokens=4",
)


def test_it_needs_a_path(typed: Typed) -> None:
    ended = typed("model=auto")
    assert ended.code == 2
    assert ended.errors == ["model.path: model=auto needs one, a folder or a hub id: model.path=/weights/MODEL"]
    assert list(ended.folder.iterdir()) == []


def test_what_cannot_be_proven_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, base = tmp_path / "run", NAMES["llava_onevision"].spec.folder()
    assert run_here(*SHORT, f"model.path={base}", f"run.dir={run}") == 2
    reason = "LlavaOnevisionProcessor: it writes a picture otherwise where there are several"
    assert f"error: model=auto: {reason}" in capsys.readouterr().err
    result = read_result(run)
    assert result["exit_code"] == 2 and "use model=llava_onevision, a family of vlmft's own" in result["reason"]
    assert not (run / "metrics.jsonl").exists() and not (run / "final").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen25vl", "llava15", "gemma3", "internvl3", "smolvlm"])
def test_it_trains_merges_and_loads(
    family: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, run = NAMES[family].spec, tmp_path / "run"
    assert run_here(*SHORT, f"model.path={spec.folder()}", f"run.dir={run}") == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    start = next(number for number, line in enumerate(lines) if line.startswith("vision_tower: "))
    assert lines[start] == f"vision_tower: {', '.join(spec.component_paths['vision_tower'])} (blocks: " + (
        f"{spec.block_paths['vision_tower']})"
    )
    assert lines[start + 1] == f"projector: {', '.join(spec.component_paths['projector'])}"
    assert lines[start + 2].startswith(f"llm: {', '.join(spec.component_paths['llm'])} (blocks: ")
    assert lines[start + 3].startswith("proven on 4 samples of the run and 4 of noise: encoded as by ")
    assert read_result(run)["state"] == "done"
    merged = typed_in(work, f"run={run}", "out=merged", "max_new_tokens=4", module="vlmft.merge")
    assert (merged.code, merged.err) == (0, "")
    assert merged.out.splitlines()[3].startswith("compared 8 of 8 answers are token for token the trained model's")
    model, processor = vlmft.load(run / "final")
    assert type(model.get_base_model()).__name__ == NAMES[family].model_class
    assert type(processor) is type(spec.load_processor())
