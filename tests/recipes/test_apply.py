import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer

from tests.recipes.expected import LLM_LINEAR, PEFT, TOWER, adapters, copies
from tests.recipes.training import backward, batches, save_trained, train, untied
from tests.support import CPU, compose, literally, logits, policy, tiny, with_policies, with_recipe
from vlmft.errors import ConfigError
from vlmft.recipes.apply import apply_recipe, covering_modules
from vlmft.recipes.saved import load


def trainable(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


class TestCoveringModules:
    def covering(self, *names: str) -> list[str]:
        return covering_modules(tiny().load_model(CPU), frozenset(names))

    def test_a_module_that_trains_whole_is_one(self) -> None:
        merger = [n for n, _ in tiny().load_model(CPU).named_parameters() if n.startswith("model.visual.merger.")]
        assert self.covering(*merger) == ["model.visual.merger"]

    def test_a_list_of_blocks_is_never_chosen(self) -> None:
        blocks = [name for name in TOWER if ".blocks." in name]
        assert self.covering(*blocks) == ["model.visual.blocks.0", "model.visual.blocks.1"]

    def test_a_tower_without_its_projector_is_cut_along_its_parts(self) -> None:
        parts = ["model.visual.patch_embed", "model.visual.blocks.0", "model.visual.blocks.1"]
        assert self.covering(*TOWER) == parts

    def test_nothing_to_cover(self) -> None:
        assert self.covering() == []

    def test_a_weight_without_its_bias_cannot_train_alone(self) -> None:
        name = "model.visual.blocks.0.attn.qkv.weight"
        with pytest.raises(ConfigError, match=literally(f"recipe: {name} cannot train alone beside adapters")):
            self.covering(name)


def test_a_full_llm_with_tied_embeddings_beside_adapters_is_refused() -> None:
    config = with_policies(compose("recipe=lora_vt_llm"), llm=policy("full"))
    message = "recipe: model.language_model cannot train in full beside adapters: its weight is tied to the other end"
    with pytest.raises(ConfigError, match=literally(message)):
        with_recipe(config)


def test_a_full_llm_with_a_head_of_its_own_trains_beside_adapters(tmp_path: Path) -> None:
    config = untied(with_policies(compose("recipe=lora_vt_llm"), llm=policy("full")), tmp_path / "base")
    trained = train(config)
    assert {f"{PEFT}lm_head.modules_to_save.default.weight"} <= trained.trainable == trained.moved()
    base = config.model.load_model(CPU).eval()
    loaded, _ = load(save_trained(trained, tmp_path / "final"))
    for batch in batches():
        assert torch.equal(logits(loaded, batch), logits(trained.model, batch))
        with trained.model.disable_adapter():
            assert torch.equal(logits(trained.model, batch), logits(base, batch))


def test_the_last_blocks_train_beside_adapters_too() -> None:
    config = with_policies(compose("recipe=lora_llm"), vision_tower=policy("topk", k=1), projector=policy("frozen"))
    last = "model.visual.blocks.1"
    tensors = tuple(name.removeprefix(f"{last}.") for name in TOWER if name.startswith(f"{last}."))
    assert len(tensors) == 12
    trained = train(config)
    assert trained.trainable == trained.moved() == {*copies(last, tensors), *adapters(LLM_LINEAR)}


def test_rank_and_alpha_differ_by_component() -> None:
    config = with_policies(compose("recipe=lora_vt_llm"), vision_tower=policy("lora", rank=4, alpha=32))
    layers = {name: m for name, m in with_recipe(config).named_modules() if hasattr(m, "lora_A")}
    assert Counter("visual" in name for name in layers) == {True: 10, False: 14}
    for name, layer in layers.items():
        rank, scaling = (4, 8.0) if "visual" in name else (16, 2.0)
        assert (layer.lora_A["default"].weight.shape[0], layer.scaling["default"]) == (rank, scaling), name


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    config = with_policies(compose("recipe=lora_llm"), llm=policy("lora", rank=9, alpha=6, rslora=True))
    scalings = {m.scaling["default"] for m in with_recipe(config).modules() if hasattr(m, "lora_A")}
    assert scalings == {6 / math.sqrt(9)}


def test_dora_trains_each_weights_magnitude() -> None:
    config = with_policies(compose("recipe=lora_llm"), llm=policy("lora", dora=True), projector=policy("frozen"))
    magnitudes = {f"{PEFT}{layer}.lora_magnitude_vector.default.weight" for layer in LLM_LINEAR}
    trained = train(config)
    assert trained.trainable == trained.moved() == {*adapters(LLM_LINEAR), *magnitudes}


def test_dropout_acts_on_adapters_while_training_and_only_then() -> None:
    config = with_policies(compose("recipe=lora_llm"), llm=policy("lora", dropout=0.5))
    model = train(config).model
    model.train()
    losses = {float(backward(model, batches()[0])) for _ in range(3)}
    assert len(losses) == 3
    model.eval()
    assert torch.equal(logits(model, batches()[0]), logits(model, batches()[0]))


def test_a_policy_that_finds_nothing_ends_before_the_model_is_touched() -> None:
    config = with_policies(compose("recipe=lora_llm"), vision_tower=policy("topk", k=9))
    model = config.model.load_model(CPU)
    with pytest.raises(ConfigError, match=literally("recipe.vision_tower.k: 9 blocks asked for")):
        apply_recipe(model, config.recipe, config.model, torch.float32)
    assert len(trainable(model)) == 56


@pytest.mark.parametrize(
    ("recipe", "tower"), [("lora_llm", "frozen"), ("lora_vt_llm", "lora"), ("lora_llm", "full"), ("lora_llm", "topk")]
)
def test_gradient_checkpointing_changes_no_gradient(recipe: str, tower: str) -> None:
    config = with_policies(compose(f"recipe={recipe}"), vision_tower=policy(tower))
    plain, recomputing = train(config, steps=1).model, train(config, steps=1).model
    recomputing.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    calls: Counter[str] = Counter()
    for label, model in (("plain", plain), ("recomputing", recomputing)):
        block = model.get_base_model().model.language_model.layers[0].self_attn
        block.register_forward_hook(lambda *_, label=label: calls.update([label]))
        model.train()
        for batch in batches()[:2]:
            backward(model, batch)
    assert calls == {"plain": 2, "recomputing": 4}
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.requires_grad}
    assert all(gradient is not None for gradient in gradients.values())
    for name, parameter in recomputing.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter.grad, gradients[name]), name


def test_adapters_take_16_bit_inputs_without_a_copy_and_compute_the_same() -> None:
    model = with_recipe(compose("recipe=lora_llm", "precision=bf16")).train()
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    assert len(layers) == 14 and not any(layer.cast_input_dtype_enabled for layer in layers)
    for number, layer in enumerate(layers):
        torch.nn.init.normal_(layer.lora_B["default"].weight, generator=torch.Generator().manual_seed(number))
    found = []
    for cast in (False, True):
        for layer in layers:
            layer.cast_input_dtype_enabled = cast
        loss = float(backward(model, batches()[0]))
        found.append((loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
        model.zero_grad()
    (loss, gradients), (reference, expected) = found
    assert loss == reference and gradients.keys() == expected.keys()
    assert all(torch.equal(gradients[name], expected[name]) for name in gradients)


@pytest.mark.parametrize(
    ("recipe", "tower", "depth"), [("lora_llm", "frozen", 0), ("fft_llm", "frozen", 0), ("topk", "topk", 1)]
)
def test_nothing_is_kept_below_the_first_trained_layer(recipe: str, tower: str, depth: int) -> None:
    """Frozen blocks at the bottom give hidden states that no gradient will be asked for."""
    words = ["recipe.vision_tower.k=1"] if recipe == "topk" else []
    model = with_recipe(compose(f"recipe={recipe}", *words)).train()
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    given: list[bool] = []
    blocks = inner.model.visual.blocks
    for block in blocks:
        block.register_forward_hook(lambda module, args, output: given.append(output.requires_grad))
    backward(model, batches()[0])
    assert given == [False] * (len(blocks) - depth) + [True] * depth
    assert all(parameter.grad is None for parameter in inner.model.visual.patch_embed.parameters())
