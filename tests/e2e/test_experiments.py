"""Each experiment trains as it stands on a tiny model and generated data of the same form."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import losses, read_result, run_here
from tests.support import PROJECT

MODELS = {
    "dashcam_sft": "tiny_internvl3",
    "llava_qlora_day69": "tiny_llava15",
    "vila_finetune": "tiny_qwen25vl",
    "wildfire_grpo": "tiny_qwen25vl",
    "qwen_finetune_full": "tiny_qwen25vl",
    "qwen_finetune_lora": "tiny_qwen25vl",
    "qwen_finetune_lora_vision": "tiny_qwen25vl",
    "qwen_finetune_video": "tiny_qwen25vl",
    "qwen_finetune_dpo": "tiny_qwen25vl",
    "qwen_finetune_grpo": "tiny_qwen25vl",
    "qwen_finetune_cls": "tiny_qwen25vl",
}
SWEEPS = {"lora_rank_targets"}
"""Those that are many runs; tests/e2e/test_sweep.py types them."""

# What their real models are: the word that stands in the file.
REAL = {"tiny_internvl3": "InternVL3", "tiny_llava15": "Llava15", "tiny_qwen25vl": "Qwen25VL"}

SHORT = (
    *("trainer.max_steps=2", "trainer.num_workers=0", "global_batch_size=2", "logger=none", "optim.warmup=0"),
    "trainer.log_every=1",
    *("evaluation.max_samples=2", "evaluation.max_new_tokens=4", "preview=0"),
)


def test_every_experiment_is_tried() -> None:
    assert {path.stem for path in (PROJECT / "conf/experiment").glob("*.yaml")} == MODELS.keys() | SWEEPS


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_an_experiment(tmp_path: Path, name: str) -> None:
    words = (f"+experiment={name}", f"model={MODELS[name]}", f"run.dir={tmp_path / 'run'}")
    assert run_here(*words, *SHORT, *(("trainer.max_new_tokens=8",) if name.endswith("grpo") else ())) == 0
    result = read_result(tmp_path / "run")
    assert result["state"] == "done" and result["steps"] == 2
    assert len(losses(tmp_path / "run")) == 2
    config: dict[str, Any] = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert config["run"]["name"] == name
    assert config["model"]["_target_"] == f"vlmft.models.Tiny{REAL[MODELS[name]]}"
