"""Samples in a pack are computed as each is alone: logits, loss and gradients, in every family that takes packs."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.models.families import FAMILIES, Family, asked, collator_of, encoder_of, picture, processor_of, video
from tests.support import compose, literally, tiny, with_recipe
from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded
from vlmft.errors import ConfigError
from vlmft.models import packing, tower, varlen
from vlmft.models.classifier import backbone_of, pool
from vlmft.models.packing import PACKED, borders, packed_attention, use_packed_attention
from vlmft.training.loss import supervised_logits, supervised_loss
from vlmft.types import Message, Sample

PACKING = [family for family in FAMILIES if family.unpacked is None]


def marked(*fast: str) -> list[Any]:
    """Families as parameters; of those that are not `fast`, the tests are slow."""
    return [
        pytest.param(family, id=family.name, marks=() if family.name in fast else pytest.mark.slow)
        for family in PACKING
    ]


def samples(family: Family, folder: Path) -> list[Encoded]:
    """Text alone, one picture, several, a picture in a later turn and, where the family has them, videos; mixed."""
    red, wide, tall = picture(folder, 56, 56), picture(folder, 44, 130, 1), picture(folder, 200, 60, 2)
    made: list[Sample] = [
        asked("What colour is the sky over a field in the evening?", answer="red and then a deep blue"),
        asked(red, "What colour?"),
        asked("One ", wide, " and another ", tall, " are which?", answer="two shapes, one black"),
        Sample(
            "mine/2",
            (
                Message("user", ("Hello",)),
                Message("assistant", ("Hello to you",)),
                Message("user", (tall, "And this?")),
                Message("assistant", ("a black shape",)),
            ),
            "data.json:2",
        ),
        asked("Yes or no?", answer="no"),
    ]
    if family.video:
        clip = video(folder, 4, 60, 90)
        made.insert(2, asked(clip, "What happens?", answer="it moves"))
        made.append(asked(video(folder, 3, 56, 56), "And here?", answer="nothing"))
        if family.mixed:
            made.insert(0, asked(clip, " or ", red, "?", answer="the picture"))
    return [encoder_of(family).encode(sample) for sample in made]


def packs(family: Family) -> Collator:
    return Collator(family.spec, processor_of(family.name), packs=True)


def model_of(family: Family, recipe: str = "fft") -> Any:
    model = with_recipe(compose(f"model=tiny_{family.name}", f"recipe={recipe}", "precision=fp32"))
    use_packed_attention(model)
    return model.eval()  # no dropout: it would differ by the row


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Between two gradients, as a share of the largest entry."""
    assert one.keys() == other.keys() and one
    largest = max(float(gradient.abs().max()) for gradient in one.values())
    return max(float((one[name] - other[name]).abs().max()) for name in one) / largest


def alone(family: Family, model: Any, encoded: Sequence[Encoded]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the samples, each in a batch of its own, summed."""
    total = 0.0
    for sample in encoded:
        loss = supervised_loss(model, *collator_of(family).on_device([sample], model))
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def _train_without_dropout(model: Any) -> None:
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


@pytest.mark.parametrize("recipe", ["fft", "lora_llm"])
@pytest.mark.parametrize("family", marked("qwen25vl"))
def test_loss_and_gradients_of_a_pack_are_the_sums_of_its_samples(family: Family, recipe: str, tmp_path: Path) -> None:
    model, encoded = model_of(family, recipe), samples(family, tmp_path)
    expected, own = alone(family, model, encoded)
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
            _train_without_dropout(model)  # transformers recomputes in training alone
        inputs, labels = packs(family).for_loss(encoded, model)
        assert labels.shape == (1, sum(sample.num_tokens for sample in encoded))
        loss = supervised_loss(model, inputs, labels)
        loss.backward()
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        assert largest_difference(gradients(model), own) < 1e-5, checkpointing


@pytest.mark.parametrize("family", marked("qwen25vl", "glm4v_moe", "smolvlm", "llava_next"))
def test_logits_are_those_of_each_sample_alone_whatever_stands_before_it(family: Family, tmp_path: Path) -> None:
    model, encoded = model_of(family), samples(family, tmp_path)
    with torch.no_grad():
        rows = [collator_of(family).on_device([sample], model) for sample in encoded]
        own = [supervised_logits(model, *row)[0][0] for row in rows]
        seen = torch.cat([pooled(model, inputs) for inputs, _ in rows])  # what trainer=classification learns from
        for order in (range(len(encoded)), range(len(encoded) - 1, -1, -1), [0]):
            inputs, labels = packs(family).for_loss([encoded[i] for i in order], model)
            found, _ = supervised_logits(model, inputs, labels)
            expected = torch.cat([own[i] for i in order])
            assert found[0].shape == expected.shape
            states = pooled(model, inputs)
            assert float((states - seen[list(order)]).abs().max()) < 1e-5 * max(1, float(seen.abs().max()))
            assert float((found[0] - expected).abs().max()) < 1e-5 * max(1, float(expected.abs().max()))
        joined = inputs_without_borders(packs(family), encoded, model)
        leaked, _ = supervised_logits(model, *joined)
        assert float((leaked[0] - torch.cat(own)).abs().max()) > 1e-3  # the difference that this test is to see


def pooled(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Means over each sample's hidden states, without the LM head."""
    return pool(backbone_of(model)(**inputs, use_cache=False).last_hidden_state, inputs["attention_mask"], "mean")


def inputs_without_borders(
    collator: Collator, encoded: Sequence[Encoded], model: Any
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    inputs, labels = collator.for_loss(encoded, model)
    return inputs | {"attention_mask": borders([labels.shape[1]], labels.device)}, labels


def refused(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(*words).model.refuse_packing()
    return str(caught.value)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.unpacked], ids=lambda family: family.name)
def test_families_that_take_no_packs_say_why(family: Family) -> None:
    name = type(family.spec).__name__
    expected = f"batching=packed: {name} takes no packs: {family.unpacked}; take batching=grouped"
    assert refused(f"model=tiny_{family.name}") == expected


def test_fifteen_families_take_packs() -> None:
    assert len(PACKING) == 15 and len(FAMILIES) == 20


@pytest.mark.parametrize("family", PACKING, ids=lambda family: family.name)
def test_the_others_are_not_refused(family: Family) -> None:
    family.spec.refuse_packing()


def test_a_model_of_no_family_and_foreign_code_and_other_attention_are_refused() -> None:
    assert "nobody has looked at what its class does" in refused("model=auto", "model.path=/weights")
    foreign = refused("model=qwen25vl", "model.path=/w", "model.trust_remote_code=true", f"model.revision={'a' * 40}")
    assert "Qwen25VL takes no packs: its Python code is its own" in foreign
    assert "model.attention is eager: take model.attention=sdpa, or" in refused("model.attention=eager")


def test_an_llm_that_nobody_has_looked_at_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny().load_model(torch.device("cpu"))
    monkeypatch.setattr(packing, "PACKED_LLMS", frozenset({"llama"}))
    with pytest.raises(ConfigError, match=literally("is of type qwen2_5_vl_text, and nobody has looked at that; take")):
        use_packed_attention(model)
    monkeypatch.undo()
    model.get_decoder().config._attn_implementation = "eager"
    with pytest.raises(ConfigError, match=r"and layers\.0\.self_attn computes attention by other means than sdpa"):
        use_packed_attention(model)


def test_the_llm_alone_is_given_the_function() -> None:
    model = tiny().load_model(torch.device("cpu"))
    use_packed_attention(model)
    assert {
        module.config._attn_implementation for module in model.get_decoder().modules() if hasattr(module, "config")
    } == {PACKED}
    assert model.model.visual.config._attn_implementation == "sdpa"


def heads(length: int, number: int, seed: int) -> torch.Tensor:
    return torch.randn(1, number, length, 8, generator=torch.Generator().manual_seed(seed))


LENGTHS = (5, 1, 9, 3)


def reference(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None) -> torch.Tensor:
    """Attention written out, in float64: [1, S, heads, D]."""
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1).double() for tensor in (key, value))
    number = torch.tensor([i for i, length in enumerate(LENGTHS) for _ in range(length)])
    place = torch.arange(sum(LENGTHS))
    seen = (number[:, None] == number) & (place[:, None] >= place)
    if window is not None:
        seen &= place[:, None] - place < window
    scores = (query.double() @ key.transpose(2, 3) * 0.3).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


class Module(torch.nn.Module):
    num_key_value_groups = 2
    is_causal = True


@pytest.mark.parametrize("window", [None, 4, 9])
def test_attention_is_that_within_each_sample(window: int | None) -> None:
    query, key, value = heads(18, 4, 0), heads(18, 2, 1), heads(18, 2, 2)
    mask = borders(LENGTHS, query.device)
    found, weights = packed_attention(Module(), query, key, value, mask, scaling=0.3, sliding_window=window)
    assert weights is None and mask.shape == (1, 1, 9, 5) and mask.dtype == torch.int32
    assert mask[0, 0, 0].tolist() == [0, 5, 6, 15, 18]
    torch.testing.assert_close(found.double(), reference(query, key, value, window), atol=1e-6, rtol=0)


@pytest.mark.parametrize("takes_groups", [True, False])
@pytest.mark.parametrize("window", [None, 4])
def test_the_kernel_of_one_call_is_given_what_it_takes(
    window: int | None, takes_groups: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for torch's kernel, which runs on CUDA alone: what is asked of it, not what it computes."""
    asked_for: dict[str, Any] = {}

    def kernel(
        query: torch.Tensor, key: Any, value: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, **options: Any
    ) -> Any:
        asked_for.update(options, max_q=max_q, max_k=max_k, heads=key.shape[1], ends=cu_q.tolist(), same=cu_q is cu_k)
        assert cu_q.dtype == torch.int32 and cu_q.is_contiguous() and type(max_q) is int
        query, key, value = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
        return reference(query, key, value, window)[0].float()

    takes = {"scale", "window_size"} | ({"enable_gqa"} if takes_groups else set())
    monkeypatch.setattr(packing, "varlen", lambda: (kernel, takes))
    query, key, value = heads(18, 4, 0), heads(18, 2, 1), heads(18, 2, 2)
    mask = borders(LENGTHS, query.device)
    found = packing._one_call(query, key, value, mask[0, 0, 0], mask.shape[2], 0.3, window)
    torch.testing.assert_close(found.double(), reference(query, key, value, window), atol=1e-6, rtol=0)
    expected = {"scale": 0.3, "window_size": (-1 if window is None else window - 1, 0), "max_q": 9, "max_k": 9}
    expected |= {"ends": [0, 5, 6, 15, 18], "same": True, "heads": 2 if takes_groups else 4}
    assert asked_for == expected | ({"enable_gqa": True} if takes_groups else {})


def test_torch_has_the_kernel_with_these_arguments() -> None:
    found = varlen.varlen()
    assert found is not None and found[1] >= {"scale", "window_size", "enable_gqa"}


@pytest.mark.parametrize(
    ("capability", "width", "dtype", "dropout", "expected"),
    [
        ((8, 0), 64, torch.bfloat16, 0.0, True),
        ((9, 0), 256, torch.float16, 0.0, True),
        ((7, 5), 64, torch.float16, 0.0, False),  # a T4: "FlashAttention only supports Ampere GPUs or newer"
        ((8, 0), 60, torch.bfloat16, 0.0, False),
        ((8, 0), 264, torch.bfloat16, 0.0, False),
        ((8, 0), 64, torch.float32, 0.0, False),
        ((8, 0), 64, torch.bfloat16, 0.1, False),
    ],
)
def test_the_kernel_is_taken_where_it_runs(
    capability: tuple[int, int],
    width: int,
    dtype: torch.dtype,
    dropout: float,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    query: Any = SimpleNamespace(device=torch.device("cuda"), dtype=dtype, shape=(1, 4, 18, width))
    assert varlen.varlen_usable(query, dropout) == expected


def test_both_attentions_ask_whether_the_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the kernel gives zeros; where it cannot run it is not called."""
    query, ends = heads(18, 4, 0), torch.tensor([0, 5, 6, 15, 18], dtype=torch.int32)
    for usable in (True, False):
        for file in (packing, tower):
            monkeypatch.setattr(file, "varlen_usable", lambda query, dropout: usable)  # noqa: B023
            monkeypatch.setattr(file, "varlen", lambda: (lambda q, *others, **options: 0 * q, frozenset()))
        packed, _ = packed_attention(Module(), query, query[:, :2], query[:, :2], borders(LENGTHS, query.device))
        towered, _ = tower.segment_attention(
            Module(), query, query, query, None, cu_seq_lens_q=ends, max_length_q=9, scaling=0.3
        )
        assert bool(packed.any()) != usable and bool(towered.any()) != usable


def test_under_autocast_both_attentions_compute_in_its_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries and keys arrive in float32, rotated, and values in bf16, as of weights in float32 that all train."""
    query, key, value = heads(18, 4, 0), heads(18, 4, 1), heads(18, 4, 2).bfloat16()
    mask, ends = borders(LENGTHS, query.device), torch.tensor([0, 5, 6, 15, 18], dtype=torch.int32)
    kernel_given: list[torch.dtype] = []
    sdpa_given: list[torch.dtype] = []
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def kernel(*given: Any, **options: Any) -> torch.Tensor:
        kernel_given.extend(tensor.dtype for tensor in given[:3])
        return given[0]

    def counted(*given: torch.Tensor, **options: Any) -> torch.Tensor:
        sdpa_given.extend(tensor.dtype for tensor in given[:3])
        return sdpa(*given, **options)

    def both() -> list[torch.Tensor]:
        towered = tower.segment_attention(
            Module(), query, key, value, None, cu_seq_lens_q=ends, max_length_q=9, scaling=0.3
        )
        return [packed_attention(Module(), query, key, value, mask, scaling=0.3)[0], towered[0]]

    for file in (packing, tower):
        monkeypatch.setattr(file, "varlen", lambda: (kernel, frozenset()))
    monkeypatch.setattr(Module, "num_key_value_groups", 1)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    with torch.autocast("cpu", torch.bfloat16):
        packed, towered = both()
        for file in (packing, tower):
            monkeypatch.setattr(file, "varlen_usable", lambda query, dropout: query.dtype == torch.bfloat16)
        both()
    assert set(sdpa_given) == set(kernel_given) == {torch.bfloat16} and len(kernel_given) == 6
    torch.testing.assert_close(packed.double(), reference(query, key, value, None), atol=2e-2, rtol=0)
    assert towered.dtype == torch.bfloat16


def test_autocast_gives_the_loss_that_its_cast_in_sdpa_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And about that of float32: weights in float32 that all train, computed in bf16."""
    family = next(family for family in PACKING if family.name == "qwen25vl")
    model, encoded = model_of(family), samples(family, tmp_path)
    tower.use_fast_tower(model)
    batch = packs(family).for_loss(encoded, model)
    with torch.no_grad():
        exact = float(supervised_loss(model, *batch))
        with torch.autocast("cpu", torch.bfloat16):
            found = float(supervised_loss(model, *batch))
            for file in (packing, tower):
                monkeypatch.setattr(file, "as_autocast", lambda *tensors: tensors)
            before = float(supervised_loss(model, *batch))
    assert found == pytest.approx(before, rel=1e-5) and found == pytest.approx(exact, rel=1e-2) and found != exact


def test_what_the_function_does_not_know_is_refused() -> None:
    query, key, value = heads(18, 4, 0), heads(18, 2, 1), heads(18, 2, 2)
    with pytest.raises(ConfigError, match="the LLM's attention asks for s_aux; take batching=grouped"):
        packed_attention(Module(), query, key, value, borders(LENGTHS, query.device), s_aux=torch.ones(4))


def test_another_attention_function_fails_over_the_borders_of_a_pack(tmp_path: Path) -> None:
    """What makes a silent leak impossible: an LLM that was not given the function takes no pack."""
    family = next(family for family in PACKING if family.name == "qwen25vl")
    model = with_recipe(compose("precision=fp32")).eval()
    inputs, labels = packs(family).for_loss(samples(family, tmp_path)[:2], model)
    with pytest.raises(RuntimeError):
        supervised_logits(model, inputs, labels)
