"""What real sizes take: the record keeps to published totals and to numbers by hand, and meta counts as real models."""

import importlib
import json
import math
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from tests.recipes.training import RECIPES
from tests.support import PROJECT, compose, with_recipe
from vlmft.recipes.table import component_rows

QWEN_7B = "Qwen/Qwen2.5-VL-7B-Instruct"


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    return importlib.import_module("families")


@pytest.fixture
def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((PROJECT / "benchmarks/results/families.json").read_text())
    return found


def test_the_record_keeps_to_the_published_totals(families: ModuleType, recorded: dict[str, Any]) -> None:
    assert recorded["bound_share"] == families.BOUND == 0.01
    assert list(recorded["models"]) == [size.checkpoint for size in families.SIZES]
    for size in families.SIZES:
        figures = recorded["models"][size.checkpoint]
        assert figures["published"] == size.published
        assert sum(figures["parameters"].values()) == figures["total"]
        assert abs(figures["total"] / size.published - 1) <= 0.01, size.checkpoint
        assert list(figures["recipes"]) == RECIPES, "python benchmarks/families.py"


def test_its_bytes_add_up(recorded: dict[str, Any]) -> None:
    """Gradients are float32 and AdamW has two moments of it."""
    for figures in recorded["models"].values():
        for taken in figures["recipes"].values():
            trained = sum(taken["trainable"].values())
            assert taken["trainable_total"] == trained
            assert (taken["gradients"], taken["optimiser"]) == (4 * trained, 8 * trained)
            assert taken["total"] == taken["weights"] + 12 * trained


def test_qwen_7b_by_hand(recorded: dict[str, Any]) -> None:
    figures = recorded["models"][QWEN_7B]
    block = 2 * 1280 + (1280 * 3840 + 3840) + (1280 * 1280 + 1280) + 3 * 1280 * 3420 + 2 * 3420 + 1280
    merger = 1280 + (5120 * 5120 + 5120) + (5120 * 3584 + 3584)
    layer = 2 * 3584**2 + 2 * 3584 * 512 + 3 * 3584 * 18944  # without norms and biases
    vectors = 28 * (2 * 3584 + 3584 + 2 * 512) + 3584
    head = 152064 * 3584
    assert figures["parameters"] == {
        "vision_tower": 3 * 2 * 14 * 14 * 1280 + 32 * block,
        "projector": merger,
        "llm": 28 * layer + vectors + 2 * head,
    }
    adapters = 28 * 16 * (2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944))
    lora, nf4 = figures["recipes"]["lora_llm"], figures["recipes"]["lora_llm_nf4"]
    assert lora["trainable"] == nf4["trainable"] == {"vision_tower": 0, "projector": merger, "llm": adapters}
    trained = 4 * (adapters + merger)
    assert lora["weights"] == 2 * figures["total"] + trained
    assert lora["of_these_copies"] == 2 * merger
    scales = 28 * sum(
        4 * math.ceil(size / 64 / 256) + size // 64 for size in (*2 * [3584**2], *2 * [3584 * 512], *3 * [3584 * 18944])
    )
    assert nf4["weights"] == 2 * (figures["total"] - 28 * layer) + 28 * layer // 2 + scales + trained


def test_full_training_leaves_out_what_no_gradient_reaches(recorded: dict[str, Any]) -> None:
    """CLIP's 24th block and the norm behind it, which LLaVA does not read."""
    block = 4 * (1024 * 1024 + 1024) + (1024 * 4096 + 4096) + (4096 * 1024 + 1024) + 2 * 2 * 1024
    for checkpoint, figures in recorded["models"].items():
        unread = block + 2 * 1024 if "llava" in checkpoint else 0
        assert figures["recipes"]["fft"]["trainable_total"] == figures["total"] - unread


@pytest.mark.parametrize("recipe", ["fft", "ln_vt_lora_llm_nf4", "lora_llm_int8", "dora_llm"])
def test_without_weights_it_counts_as_with_them(families: ModuleType, recipe: str) -> None:
    config = compose(f"recipe={recipe}", "precision=bf16")
    values = AutoConfig.from_pretrained(config.model.folder()).to_dict()
    found = families.count_recipe(families.Size("tiny", "tiny_qwen25vl", 0, values), recipe)
    model = with_recipe(config)
    rows = component_rows(model, config.recipe, config.model, config.optim.lr, config.optim.state_bytes)
    assert found["parameters"] == {row.component: row.parameters for row in rows}
    assert found["trainable"] == {row.component: row.trainable for row in rows}
    assert found["policies"] == {row.component: row.policy for row in rows}
    assert found["total"] == sum(row.memory_bytes for row in rows)
    assert found["of_these_copies"] == sum(row.copies_bytes for row in rows)


def test_it_fails_on_a_config_that_is_not_the_published_one(
    families: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = AutoConfig.from_pretrained(compose().model.folder()).to_dict()
    with torch.device("meta"):
        total = sum(parameter.numel() for parameter in families.build(tiny).parameters())
    monkeypatch.setattr(families, "quiet_libraries", lambda: None)  # this process's are not its own
    for published, code in ((round(total / 1.009), 0), (round(total / 1.011), 1)):
        monkeypatch.setattr(families, "SIZES", [families.Size("a/tiny", "tiny_qwen25vl", published, tiny)])
        monkeypatch.setattr(families, "QUICK", ("fft",))
        monkeypatch.setattr(sys, "argv", ["families.py", "--quick"])
        assert families.main() == code
    assert "of published" in capsys.readouterr().out


@pytest.mark.slow
def test_it_runs() -> None:
    command = [sys.executable, PROJECT / "benchmarks/families.py", "--quick"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Qwen2.5-VL-3B" in done.stdout and "100.00%" in done.stdout and "ln_vt_lora_llm_nf4" in done.stdout
