"""Operations by component against torch's own counter, and against figures that were worked out by hand."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from tests.support import compose, encoding, with_recipe
from vlmft.encoding.probe import probe_sample
from vlmft.planning.build import hollow_model
from vlmft.planning.hollow import Hollow
from vlmft.training import head
from vlmft.training.flops import ATTENTION, FlopRates, counting_flops, rates_of
from vlmft.training.loss import supervised_loss
from vlmft.training.peaks import peak_tflops

WIDTH, LAYERS = 64, 2


def counted(recipe: str) -> tuple[dict[str, int], int, Any]:
    """By component, and in all by torch's counter, with the attention that it leaves out."""
    config = compose(f"recipe={recipe}")
    model, (encoder, collator) = with_recipe(config), encoding()
    unit = probe_sample(encoder)

    def run() -> None:
        supervised_loss(model, *collator.on_device([unit], model)).backward()

    aten = torch.ops.aten
    attention = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
            sdpa_backward_flop_count(g, q, k, v)
        ),
    }
    with counting_flops(model, config.model) as found:
        run()
    with FlopCounterMode(display=False, custom_mapping=attention) as torchs:
        run()
    return dict(found), torchs.get_total_flops(), unit


def test_components_add_up_to_what_torch_counts_and_frozen_ones_cost_less() -> None:
    full, total, unit = counted("fft")
    assert sum(full.values()) == total
    llm_only, total, _ = counted("fft_llm")
    assert sum(llm_only.values()) == total
    # A frozen tower below all that trains has a forward pass alone; the LLM's own work stays the same.
    assert llm_only["vision_tower"] < full["vision_tower"] / 2.5
    assert {part: llm_only[part] for part in ("llm", ATTENTION)} == {part: full[part] for part in ("llm", ATTENTION)}
    tower_only, _, _ = counted("fft_vt")
    assert tower_only["llm"] == pytest.approx(full["llm"] * 2 / 3, rel=1e-3)  # no gradients of its weights
    # Two products forward, five backward, each of 2 x width a pair of tokens and layer.
    assert full[ATTENTION] == 7 * 2 * WIDTH * LAYERS * unit.num_tokens**2


def test_a_head_in_chunks_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _, _ = counted("fft")
    monkeypatch.setattr(head, "CHUNK_BYTES", 1000)
    assert counted("fft")[0] == whole


def test_samples_without_supervised_tokens_have_no_rate_of_the_head() -> None:
    _, _, unit = counted("fft_llm")
    asked = replace(unit, supervised=torch.zeros_like(unit.supervised))
    assert rates_of({"llm": unit.num_tokens}, [asked]).supervised_token == 0
    assert rates_of({"head": 6 * unit.num_supervised}, [asked, unit]).supervised_token == 6


def test_rates_scale_a_sample_to_others() -> None:
    _, _, unit = counted("fft")
    rates = rates_of({"llm": 100 * unit.num_tokens, "vision_tower": 7 * unit.num_vision_tokens, "head": 0}, [unit])
    assert rates == FlopRates(token=100, token_pair=0, vision_token=7, supervised_token=0)
    assert rates.of(tokens=10, pairs=50, vision_tokens=3, supervised=1) == 1021


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("4090", 165.2),
        ("l40s", 362.0),
        ("Quadro K620", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
    ],
)
def test_peaks_go_by_whole_words_of_a_name(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak


def qwen25vl_7b(folder: Path) -> str:
    """The config of Qwen2.5-VL-7B by its published sizes, with a tiny processor; returns the folder."""
    shutil.copytree(compose().model.folder(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "layer_types": ["full_attention"] * 28,
        "tie_word_embeddings": False,
    }
    config["text_config"]["rope_parameters"]["mrope_section"] = [16, 24, 24]
    config["vision_config"] |= {
        "depth": 32,
        "hidden_size": 1280,
        "num_heads": 16,
        "intermediate_size": 3420,
        "out_hidden_size": 3584,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    config["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.slow
def test_a_checkpoint_of_7b_is_counted_from_its_config_alone(tmp_path: Path) -> None:
    config = compose("model=qwen25vl", f"model.path={qwen25vl_7b(tmp_path / 'qwen')}", "recipe=fft")
    hollow = Hollow()
    model = hollow_model(config, hollow)
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_292_166_656
    encoder, collator = encoding(spec=config.model)
    unit = probe_sample(encoder)
    with hollow, torch.no_grad(), counting_flops(model, config.model) as found:
        supervised_loss(model, *collator.on_device([unit], model))
    rates = rates_of(found, [unit])
    # Two operations a weight: 28 layers of 233,057,792 weights in linear layers, a head of 3584 x 152064.
    assert rates.token == 2 * 28 * (3584 * (2 * 3584 + 2 * 512) + 3 * 3584 * 18944)
    assert rates.supervised_token == 2 * 3584 * 152064
    assert rates.vision_token == pytest.approx(5.13e9, rel=0.02)
