"""`base: bf16`: a component's frozen weights in bf16, in a run that computes in more."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.families import FAMILIES, Family, asked, collator_of, encoder_of, picture
from tests.recipes.expected import EVERYTHING, LLM_LINEAR, TOWER_LINEAR, original_name
from tests.recipes.test_merge import apart, assert_merges, bound, merged, on_base
from tests.recipes.training import Trained, backward, batches, save_trained, shipped, train
from tests.support import CPU, compose, literally, logits, policy, tiny, with_policies, with_recipe
from vlmft.errors import ConfigError
from vlmft.recipes.apply import apply_recipe
from vlmft.recipes.groups import parameter_groups
from vlmft.recipes.merge import load_merged
from vlmft.recipes.saved import load, open_saved
from vlmft.train import TrainConfig
from vlmft.training.loss import supervised_loss

LLM_NARROW = {"model.language_model.embed_tokens.weight", *(f"{layer}.weight" for layer in LLM_LINEAR)}
TOWER_NARROW = {f"{layer}.weight" for layer in TOWER_LINEAR}


def llm(precision: str = "fp32", **changes: Any) -> TrainConfig:
    return with_policies(shipped("lora_llm", precision), llm=policy("lora", base="bf16", **changes))


def tower_and_llm() -> TrainConfig:
    narrow = policy("lora", base="bf16")
    return with_policies(compose("recipe=lora_vt_llm"), vision_tower=narrow, llm=narrow)


def frozen_llm() -> TrainConfig:
    return with_policies(compose("recipe=fft_vt"), llm=policy("frozen", base="bf16"))


CONFIGS = {
    "adapters and biases": lambda: llm(bias=True),
    "magnitudes": lambda: llm(dora=True),
    "an adapted head": lambda: llm(targets=["lm_head", "q_proj"]),
    "tower and LLM": tower_and_llm,
    "a frozen tower beside an LLM in 4 bits": lambda: with_policies(
        compose("recipe=lora_llm_nf4"), vision_tower=policy("frozen", base="bf16")
    ),
    "a frozen LLM, without adapters": frozen_llm,
    "in fp16": lambda: llm("fp16"),
}


def rounded_base(names: set[str]) -> Any:
    """The tiny model, its weights of these names rounded to bf16 and widened again: an ordinary model in float32."""
    model = tiny().load_model(CPU)
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.data = parameter.data.bfloat16().float()
    return model.eval()


@pytest.mark.parametrize(
    ("config", "narrow"),
    [(tower_and_llm, LLM_NARROW | TOWER_NARROW), (frozen_llm, LLM_NARROW)],
)
def test_linear_layers_and_embeddings_are_kept_in_bf16_and_nothing_else(config: Any, narrow: set[str]) -> None:
    kept = {}
    for name, parameter in with_recipe(config()).named_parameters():
        if (original := original_name(name)) is not None:
            kept[original] = parameter.dtype
    assert kept == {name: torch.bfloat16 if name in narrow else torch.float32 for name in EVERYTHING}


def test_it_computes_what_a_model_with_rounded_weights_does_to_the_bit() -> None:
    model, expected = with_recipe(llm()), rounded_base(LLM_NARROW)
    for batch in batches():
        assert torch.equal(logits(model, batch), logits(expected, batch))
        assert not torch.equal(logits(model, batch), logits(tiny().load_model(CPU), batch))


def test_its_gradients_are_those_of_that_model() -> None:
    config = with_policies(compose("recipe=lora_llm"), llm=policy("lora", bias=True))
    plain = apply_recipe(rounded_base(LLM_NARROW), config.recipe, config.model, torch.float32)
    narrow = with_recipe(llm(bias=True))
    for model in (plain, narrow):
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        model.train()
        for batch in batches():
            backward(model, batch)
    expected = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.requires_grad}
    found = {name: parameter.grad for name, parameter in narrow.named_parameters() if parameter.requires_grad}
    assert found.keys() == expected.keys() and any(name.endswith("base_layer.bias") for name in found)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def test_a_checkpoint_in_bf16_loses_nothing() -> None:
    for batch in batches():
        plain, narrow = (with_recipe(on_base(c, "bf16")) for c in (compose("recipe=lora_llm"), llm()))
        assert torch.equal(logits(plain, batch), logits(narrow, batch))


def test_no_wide_copy_is_kept_for_the_backward_pass() -> None:
    shapes = {tuple(tiny().load_model(CPU).get_parameter(name).shape) for name in LLM_NARROW}
    saved: list[torch.Tensor] = []
    model = with_recipe(llm(rank=7)).train()  # no adapter has a base weight's shape
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (saved.append(tensor), tensor)[1], lambda t: t):
        backward(model, batches()[0])
    of_weights = [t for t in saved if tuple(t.shape) in shapes or tuple(t.shape[::-1]) in shapes]
    assert len(of_weights) >= len(LLM_LINEAR)
    assert {tensor.dtype for tensor in of_weights} == {torch.bfloat16}


def test_in_a_run_in_bf16_it_is_what_the_base_is_anyway() -> None:
    plain, narrow = with_recipe(shipped("lora_llm", "bf16")), with_recipe(llm("bf16"))
    assert [type(module) for module in plain.modules()] == [type(module) for module in narrow.modules()]
    for batch in batches():
        assert torch.equal(logits(plain, batch), logits(narrow, batch))


@pytest.mark.parametrize("name", CONFIGS)
def test_it_trains_loads_and_merges(name: str, tmp_path: Path) -> None:
    """Merged, in the checkpoint's float32, a frozen weight is the rounded one, with which the model computed."""
    trained = train(CONFIGS[name]())
    assert trained.moved() == trained.trainable != set()
    loaded, _ = load(save_trained(trained, tmp_path / "final"))
    assert apart(loaded, trained.model) == 0
    found = merged(trained, tmp_path / "again")
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    assert not [module for module in found.modules() if type(module).__module__ == "vlmft.recipes.narrow"]
    dtype = torch.float16 if trained.config.precision == "fp16" else torch.float32
    assert apart(found, trained.model) <= bound(found, dtype)
    if trained.config.recipe.bases["llm"] == "bf16":
        name = "model.language_model.embed_tokens.weight"
        assert torch.equal(found.get_parameter(name), rounded_base({name}).get_parameter(name))


def test_a_base_in_bf16_merges_in_its_own_dtype(tmp_path: Path) -> None:
    assert_merges(train(on_base(llm(), "bf16")), tmp_path)


def test_without_its_adapter_the_trained_model_is_the_rounded_base() -> None:
    model = train(llm()).model
    with model.disable_adapter():
        for batch in batches():
            assert torch.equal(logits(model, batch), logits(rounded_base(LLM_NARROW), batch))


def test_magnitudes_start_from_the_rounded_weights() -> None:
    model = with_recipe(llm(dora=True))
    for batch in batches():
        torch.testing.assert_close(logits(model, batch), logits(rounded_base(LLM_NARROW), batch), rtol=1e-5, atol=1e-5)


def test_an_embedding_that_scales_is_left_alone_and_so_is_the_head_tied_to_it() -> None:
    """Gemma 3's would scale in bf16."""
    config = compose("model=tiny_gemma3", "precision=fp32", "recipe=lora_llm", "recipe.llm.base=bf16")
    model, expected = with_recipe(config).eval(), config.model.load_model(CPU).eval()
    narrow = {original_name(name) for name, p in model.named_parameters() if p.dtype == torch.bfloat16}
    assert narrow and not [name for name in narrow if "embed_tokens" in str(name)]
    for name in narrow:
        weight = expected.get_parameter(name)
        weight.data = weight.data.bfloat16().float()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, expected(input_ids=ids).logits)


def test_a_towers_table_of_places_is_left_alone() -> None:
    """GLM's tower takes the numbers between places in the dtype that it finds the table in."""
    narrow = policy("lora", base="bf16")
    config = compose("model=tiny_glm4v", "precision=fp32", "recipe=lora_vt_llm")
    model = with_recipe(with_policies(config, vision_tower=narrow, llm=narrow))
    tower, llm = model.get_base_model().model.visual, model.get_base_model().model.language_model
    assert tower.embeddings.position_embedding.weight.dtype == torch.float32
    assert llm.embed_tokens.weight.dtype == tower.blocks[0].attn.proj.base_layer.weight.dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if not family.experts], ids=lambda family: family.name
)
def test_every_family_trains_loads_and_merges(family: Family, tmp_path: Path) -> None:
    """tests/models/test_matrix.py holds the shipped recipes so; none of them has a base in bf16."""
    narrow = policy("lora", base="bf16")
    config = compose(f"model=tiny_{family.name}", "recipe=lora_vt_llm").model_copy(update={"precision": "fp32"})
    config = with_policies(config, vision_tower=narrow, llm=narrow)
    encoder = encoder_of(family)
    batch = collator_of(family)([encoder.encode(asked(picture(tmp_path, 56, 84), "What?"))])

    def answers(model: Any) -> torch.Tensor:
        with torch.no_grad():
            found = model.eval()(**config.model.model_inputs(encoder.processor, dict(batch.inputs)), use_cache=False)
        return found.logits.double()

    model = with_recipe(config)
    before = answers(model)
    optimizer = torch.optim.AdamW(parameter_groups(model, config.recipe, config.model, 1e-3, 0.0))
    for _ in range(2):
        inputs = config.model.model_inputs(encoder.processor, dict(batch.inputs))
        supervised_loss(model.train(), inputs, batch.labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = answers(model)
    assert (trained - before).abs().max() > 1e-3
    saved = save_trained(Trained(config, model, {}), tmp_path / "final")
    assert torch.equal(answers(load(saved)[0]), trained)
    assert (answers(load_merged(open_saved(saved), CPU)[0]) - trained).abs().max() < 5e-5


def test_a_component_without_such_layers_is_refused() -> None:
    config = with_policies(compose("recipe=lora_llm"), vision_tower=policy("frozen", base="bf16"))
    model = config.model.load_model(CPU)
    model.model.visual.blocks = torch.nn.ModuleList()
    message = "recipe.vision_tower.base: bf16 finds no linear layer or embedding in this component; leave it out"
    with pytest.raises(ConfigError, match=literally(message)):
        apply_recipe(model, config.recipe, config.model, torch.float32)
