"""The table's numbers, worked out by hand from the tiny model's widths (64; MLP 128 and 192; merger 256)."""

import pytest

from tests.recipes.training import shipped
from tests.support import compose, policy, tiny_processor, with_policies, with_recipe
from vlmft.recipes.table import ComponentRow, component_rows, describe_policy
from vlmft.train import TrainConfig

TOWER_BLOCK = 2 * 64 + (64 * 192 + 192) + (64 * 64 + 64) + 2 * (64 * 128 + 128) + (128 * 64 + 64)
TOWER = 64 * 3 * 2 * 14 * 14 + 2 * TOWER_BLOCK
PROJECTOR = 64 + (256 * 256 + 256) + (256 * 64 + 64)
LLM_BLOCK = 2 * 64 + (64 * 64 + 64) + 2 * (64 * 32 + 32) + 64 * 64 + 3 * 64 * 192
RANK = 16
LLM_ADAPTERS = 2 * RANK * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 192))
TOWER_ADAPTERS = 2 * RANK * ((64 + 192) + (64 + 64) + 3 * (64 + 128))


def llm() -> int:
    # The head is the embedding, counted once.
    return len(tiny_processor().tokenizer) * 64 + 2 * LLM_BLOCK + 64


def rows(config: TrainConfig) -> dict[str, ComponentRow]:
    found = component_rows(with_recipe(config), config.recipe, config.model, 0.01, config.optim.state_bytes)
    return {row.component: row for row in found}


def row(
    component: str,
    policy: str,
    parameters: int,
    trainable: int,
    precision: str,
    lr: float,
    memory: int,
    copies: int = 0,
) -> object:
    return ComponentRow(component, policy, parameters, trainable, precision, pytest.approx((lr, lr)), memory, copies)


def test_the_numbers_by_hand() -> None:
    assert (TOWER, PROJECTOR, 2 * LLM_BLOCK + 64, LLM_ADAPTERS) == (158_592, 82_304, 98_880, 38_912)


def test_full_training() -> None:
    # Float32: 4 bytes of weight, 4 of gradient, 8 of AdamW's moments.
    assert rows(compose("recipe=fft")) == {
        "vision_tower": row("vision_tower", "full", TOWER, TOWER, "float32", 0.001, 16 * TOWER),
        "projector": row("projector", "full", PROJECTOR, PROJECTOR, "float32", 0.01, 16 * PROJECTOR),
        "llm": row("llm", "full", llm(), llm(), "float32", 0.01, 16 * llm()),
    }


def test_adapters_in_bf16() -> None:
    # Frozen weights take 2 bytes; the projector is there twice, the original frozen, the copy trained.
    adapted = 2 * llm() + 16 * LLM_ADAPTERS
    assert rows(shipped("lora_llm", "bf16")) == {
        "vision_tower": row("vision_tower", "frozen", TOWER, 0, "bfloat16", 0.0, 2 * TOWER),
        "projector": row("projector", "full", PROJECTOR, PROJECTOR, "bfloat16", 0.01, 18 * PROJECTOR, 2 * PROJECTOR),
        "llm": row("llm", "lora r=16", llm(), LLM_ADAPTERS, "bfloat16", 0.01, adapted),
    }


def test_norms_and_adapters_on_the_tower() -> None:
    assert rows(compose("recipe=ln_vt_lora_llm"))["vision_tower"].trainable == 4 * 64
    found = rows(compose("recipe=lora_vt_llm"))["vision_tower"]
    assert (found.parameters, found.trainable, found.policy) == (TOWER, TOWER_ADAPTERS, "lora r=16")


def test_a_full_tower_beside_adapters_does_not_count_the_projector() -> None:
    found = rows(with_policies(compose("recipe=lora_llm"), vision_tower=policy("full")))
    counts = {name: (row.parameters, row.trainable) for name, row in found.items()}
    assert counts == {
        "vision_tower": (TOWER, TOWER),
        "projector": (PROJECTOR, PROJECTOR),
        "llm": (llm(), LLM_ADAPTERS),
    }


def test_the_magnitudes_of_dora_are_the_adapters() -> None:
    found = rows(with_policies(compose("recipe=lora_llm"), llm=policy("lora", dora=True)))["llm"]
    magnitudes = 2 * (64 + 32 + 32 + 64 + 192 + 192 + 64)
    assert (found.parameters, found.trainable) == (llm(), LLM_ADAPTERS + magnitudes)


def test_a_base_in_four_bits() -> None:
    # Two weights a byte, a byte of scale for each 64, and a float32 for each 256 of these (at least one a layer).
    linear = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 192)
    layers = 2 * 7
    found = rows(shipped("lora_llm_nf4", "bf16"))["llm"]
    assert (found.parameters, found.trainable, found.precision) == (llm(), LLM_ADAPTERS, "nf4")
    unpacked = 2 * (llm() - linear) + 16 * LLM_ADAPTERS
    assert found.memory_bytes == unpacked + linear // 2 + linear // 64 + 4 * layers


def test_a_base_in_bf16_in_a_run_in_fp32() -> None:
    # Linear layers and the embedding, which is the head, take 2 bytes; norms and biases 4.
    narrow = len(tiny_processor().tokenizer) * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 192)
    found = rows(compose("recipe=lora_llm", "recipe.llm.base=bf16"))["llm"]
    assert (found.parameters, found.trainable, found.precision) == (llm(), LLM_ADAPTERS, "bf16")
    assert found.memory_bytes == 2 * narrow + 4 * (llm() - narrow) + 16 * LLM_ADAPTERS


def test_rates_of_their_own_show_as_a_range() -> None:
    config = compose("recipe=fft", "recipe.rates=[{match: norm, lr: 1e-5}]", "recipe.llm.layer_decay=0.5")
    found = rows(config)
    assert found["vision_tower"].lr == pytest.approx((1e-5, 1e-3))
    assert found["projector"].lr == pytest.approx((1e-2, 1e-2))
    assert found["llm"].lr == pytest.approx((1e-5, 1e-2))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("frozen", {}, "frozen"),
        ("full", {}, "full"),
        ("norms", {}, "norms"),
        ("topk", {"k": 3}, "topk k=3"),
        ("lora", {"rank": 8}, "lora r=8"),
    ],
)
def test_a_policy_in_words(name: str, changes: dict[str, object], words: str) -> None:
    assert describe_policy(policy(name, **changes)) == words
