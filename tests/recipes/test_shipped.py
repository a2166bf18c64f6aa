"""What each shipped recipe promises, on the tiny model after three real steps."""

import json
from typing import Any

import pytest
import torch
from bitsandbytes import functional

from tests.recipes.expected import EVERYTHING, LLM_LINEAR, SHIPPED, WITH_ADAPTERS, original_name
from tests.recipes.record_losses import RECORDED
from tests.recipes.training import IN_BOTH_PRECISIONS, Trained, batches, train, trained_recipe
from tests.support import CPU, PROJECT, compose, logits, tiny, with_recipe
from vlmft.recipes.base import load_base
from vlmft.recipes.dtypes import compute_in

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture(params=SHIPPED)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def trained(name: str) -> Trained:
    return trained_recipe(name)


def test_every_shipped_recipe_is_in_the_table() -> None:
    assert {path.stem for path in (PROJECT / "conf/recipe").glob("*.yaml")} == set(SHIPPED)
    assert len(set(EVERYTHING)) == len(EVERYTHING) == 56


def test_exactly_what_the_table_says_requires_a_gradient(name: str, trained: Trained) -> None:
    assert trained.trainable == SHIPPED[name].names


def test_after_three_steps_what_trains_has_moved_and_nothing_else(name: str, trained: Trained) -> None:
    assert trained.moved() == SHIPPED[name].names


def is_quantised(name: str, original: str) -> bool:
    return SHIPPED[name].base is not None and original.removesuffix(".weight") in LLM_LINEAR


def quantised(weight: torch.Tensor, kind: str | None) -> torch.Tensor:
    """What bitsandbytes makes of a weight by itself."""
    if kind == "nf4":
        packed, _ = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        return packed
    return functional.int8_vectorwise_quant(weight.to(torch.float16))[0]


@pytest.mark.parametrize(("name", "precision"), IN_BOTH_PRECISIONS)
def test_every_weight_of_the_base_that_is_not_trained_in_place_is_still_there_bit_for_bit(
    name: str, precision: str
) -> None:
    base = dict(tiny().load_model(CPU).named_parameters())
    kept = set()
    for live, parameter in trained_recipe(name, precision).model.named_parameters():
        original = original_name(live)
        if original is not None and live not in SHIPPED[name].names:
            expected = base[original].to(PRECISIONS[precision])
            if is_quantised(name, original):
                expected = quantised(base[original].detach(), SHIPPED[name].base)
            assert torch.equal(parameter, expected), live
            kept.add(original)
    in_place = set() if SHIPPED[name].has_adapters else SHIPPED[name].names
    assert kept == set(EVERYTHING) - in_place


@pytest.mark.parametrize(("name", "precision"), IN_BOTH_PRECISIONS)
def test_trained_weights_are_float32_and_frozen_ones_in_the_runs_precision(name: str, precision: str) -> None:
    quantised_dtype = {"nf4": torch.uint8, "int8": torch.int8}
    for live, parameter in trained_recipe(name, precision).model.named_parameters():
        expected = torch.float32 if live in SHIPPED[name].names else PRECISIONS[precision]
        if is_quantised(name, original_name(live) or ""):
            expected = quantised_dtype[SHIPPED[name].base or ""]
        assert parameter.dtype == expected, live


def untouched(name: str, precision: str) -> Any:
    """The base as the recipe loads it."""
    dtype = PRECISIONS[precision]
    config = compose(f"recipe={name}")
    base = load_base(config.model, config.recipe, dtype, CPU) if SHIPPED[name].base else tiny().load_model(CPU)
    for parameter in base.parameters():  # not base.to: it would round the rotary tables, which stay float32
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    compute_in(base, dtype, CPU)
    return base.eval()


@pytest.mark.parametrize(
    ("name", "precision"), [case for case in IN_BOTH_PRECISIONS if case.values[0] in WITH_ADAPTERS]
)
def test_without_its_adapter_the_trained_model_is_the_base_bit_for_bit(name: str, precision: str) -> None:
    trained = trained_recipe(name, precision)
    base = untouched(name, precision)
    for batch in batches():
        expected = logits(base, batch)
        assert not torch.equal(logits(trained.model, batch), expected)
        with trained.model.disable_adapter():
            assert torch.equal(logits(trained.model, batch), expected)


@pytest.mark.parametrize("name", WITH_ADAPTERS)
def test_before_the_first_step_adapters_change_nothing(name: str) -> None:
    model = with_recipe(compose(f"recipe={name}"))
    base = untouched(name, "fp32")
    for batch in batches():
        found, expected = logits(model, batch), logits(base, batch)
        if name == "dora_llm":  # it divides each weight by its own magnitude, and multiplies by it again
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(found, expected)


def test_lora_a_cannot_move_on_the_first_step() -> None:
    config = compose("recipe=lora_llm")
    one = train(config, steps=1)
    assert {name for name in one.trainable - one.moved() if ".lora_A." not in name} == set()
    assert not any(".lora_A." in name for name in one.moved())


def test_adapters_on_the_tower_stop_short_of_the_projector() -> None:
    # The projector lies inside the tower's module: "visual" matches "visual.merger".
    names = trained_recipe("lora_vt_llm").before
    assert any("visual.blocks.1.mlp.down_proj.lora_A" in name for name in names)
    assert not any("merger" in name and ".lora_" in name for name in names)


def test_embedding_and_head_stay_one_tensor() -> None:
    for name in SHIPPED:
        model = trained_recipe(name).model
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight, name


def test_the_first_losses_are_those_on_record(name: str, trained: Trained) -> None:
    """Recorded by `python -m tests.recipes.record_losses`; other releases of torch round differently."""
    assert trained.losses == pytest.approx(json.loads(RECORDED.read_text())[name], rel=2e-3)


def test_a_record_for_each() -> None:
    assert json.loads(RECORDED.read_text()).keys() == SHIPPED.keys()
