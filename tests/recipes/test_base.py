"""The base under a recipe: what loading makes of it, and that it stays so."""

import sys

import pytest
import torch
from peft.tuners.lora import LoraLayer

from tests.recipes.expected import LLM_LINEAR, PEFT
from tests.recipes.training import backward, batches
from tests.support import CPU, compose, literally, logits, with_recipe
from vlmft.errors import ConfigError
from vlmft.recipes.base import load_base


def test_answers_leave_a_base_in_four_bits_as_it_was_and_training_reaches_every_adapter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the processor has AVX512-BF16, for which bitsandbytes would repack the weights while it answers."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    model = with_recipe(compose("recipe=lora_llm_nf4"))
    layers = {name: m.base_layer for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    assert layers.keys() == {f"{PEFT}{name}" for name in LLM_LINEAR}
    before = {name: (m.weight.clone(), m.weight.quant_state.absmax.clone()) for name, m in layers.items()}
    answers = logits(model, batches()[0])
    for name, (weight, scales) in before.items():
        assert torch.equal(layers[name].weight, weight), name
        assert torch.equal(layers[name].weight.quant_state.absmax, scales), name
    assert torch.equal(logits(model, batches()[0]), answers)
    model.train()
    backward(model, batches()[0])
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_without_bitsandbytes_a_quantised_base_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    config = compose("recipe=lora_llm_nf4")
    with pytest.raises(ConfigError, match=literally("pip install 'vlmft[quant]'")):
        load_base(config.model, config.recipe, torch.float32, CPU)
