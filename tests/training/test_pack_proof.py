from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from tests.support import compose, tiny, tiny_processor
from tests.training.conftest import Bench
from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded
from vlmft.errors import ConfigError
from vlmft.models import packing
from vlmft.models.packing import borders
from vlmft.training import pack_proof
from vlmft.training.pack_proof import BOUNDS, PackProof
from vlmft.training.sft import SupervisedObjective

MakeBench = Callable[..., Bench]
WORDS = ("batching=packed", "global_batch_size=8", "trainer.max_steps=2", "trainer.num_workers=0", "optim.warmup=0")


class Shifted(Collator):
    """Counts the positions of every sample from 0 in time, height and width alike, as if it had no pictures."""

    def for_loss(self, samples: Sequence[Encoded], model: Any) -> Any:
        inputs, labels = super().for_loss(samples, model)
        return inputs | {"position_ids": inputs["position_ids"][:1].expand(4, -1, -1)}, labels


class Leaking(Collator):
    """Says of a pack that it is one sample, with the positions of each."""

    def for_loss(self, samples: Sequence[Encoded], model: Any) -> Any:
        inputs, labels = super().for_loss(samples, model)
        return inputs | {"attention_mask": borders([labels.shape[1]], labels.device)}, labels


@pytest.fixture
def packing_bench(bench: MakeBench) -> MakeBench:
    def make(*words: str, kind: type[Collator] = Collator, precision: Any = "fp32", **replaces: Any) -> Bench:
        collator = kind(tiny(), tiny_processor(), packs=True)
        said: list[str] = []
        proof = PackProof(collator, precision, said.append)
        parts = {"collator": collator, "objective": SupervisedObjective(collator), "look_at_packs": proof}
        made = bench(*WORDS, *words, **(parts | replaces))
        made.said = said  # type: ignore[attr-defined]
        return made

    return make


def largest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    scale = max(float(gradient.abs().max()) for gradient in one.values())
    return max(float((one[name] - other[name]).abs().max()) for name in one) / scale


@pytest.mark.parametrize("recipe", ["fft", "lora_llm"])
def test_a_step_is_the_same_in_packs_as_in_padded_rows(packing_bench: MakeBench, bench: MakeBench, recipe: str) -> None:
    """Text-only, one-image and two-image samples: one pack, packs of several sizes, and rows."""
    made = packing_bench(f"recipe={recipe}")
    step = made.step()
    lengths = [sample.num_tokens for sample in step.samples]
    rows = bench(*WORDS, f"recipe={recipe}", batching=compose().batching)
    rows.trainer.model, rows.trainer.model_wrapped = made.model, made.trainer.model_wrapped
    loss, gradients = rows.gradients(step)
    for max_tokens in (sum(lengths), max(lengths) + 20):
        made.trainer.parts.batching = compose(*WORDS, f"batching.max_tokens={max_tokens}").batching
        other_loss, other_gradients = made.gradients(step)
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert largest(gradients, other_gradients) < 1e-5
        read = made.trainer.meters.read()
        assert read["padding"] == 0.0
        assert read["pack_fill"] == pytest.approx(sum(lengths) / (read["micro_batches"] * max_tokens))
    assert "pack_fill" not in rows.trainer.meters.read()


def test_the_first_pack_of_two_is_looked_at_once(packing_bench: MakeBench) -> None:
    made = packing_bench()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    made.gradients(made.step(0))
    assert torch.equal(torch.get_rng_state(), state)  # what it computes draws nothing from the run's randomness
    assert made.model.training
    (line,) = made.said  # type: ignore[attr-defined]
    assert line.startswith("packed   sample mine/") and "in a pack: its logits are as alone (within " in line
    assert line.endswith("bound 1e-04)")
    made.gradients(made.step(1))
    assert len(made.said) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_leak_stops_the_run_before_anything_is_trained(packing_bench: MakeBench, precision: str) -> None:
    made = packing_bench("recipe=fft", kind=Leaking, precision=precision)
    before = made.weights()
    said = f"in a pack, is not computed as it is alone: its logits differ by .*rounding to {precision} explains"
    with pytest.raises(ConfigError, match=rf"^batching=packed: sample mine/\w+, number \d of \d {said} .*; nothing "):
        made.trainer.train()
    assert made.weights() == before and made.said == []  # type: ignore[attr-defined]


def test_positions_that_are_not_the_models_own_stop_the_run(packing_bench: MakeBench) -> None:
    """They are the same in a pack of one: what it is compared with is counted by the model itself."""
    made = packing_bench("recipe=fft", kind=Shifted)
    with pytest.raises(ConfigError, match="is not computed as it is alone"):
        made.gradients(made.step())


def test_a_kernel_that_is_wrong_for_each_sample_alike_stops_the_run(
    packing_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_window", lambda query, size: query.new_ones(1, 1, *[query.shape[2]] * 2).bool())
    made = packing_bench("recipe=fft")
    with pytest.raises(ConfigError, match="is not computed as it is alone"):  # no causality
        made.gradients(made.step())


def test_memory_that_runs_out_in_it_leads_to_smaller_packs(
    packing_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = packing_bench(max_oom_retries=1)
    real, sizes = Collator.for_loss, []

    def for_loss(self: Collator, samples: Sequence[Encoded], model: Any) -> Any:
        sizes.append((len(samples), model.training))
        if len(samples) == 8:
            raise torch.OutOfMemoryError("no memory is left")
        return real(self, samples, model)

    monkeypatch.setattr(Collator, "for_loss", for_loss)
    made.gradients(made.step())
    assert sizes == [(8, False), (4, False), (4, True), (4, True)]
    assert len(made.said) == 1  # type: ignore[attr-defined]


def test_a_difference_that_is_no_number_stops_the_run(
    packing_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PackProof, "_difference", lambda *args: float("nan"))
    with pytest.raises(ConfigError, match="its logits differ by nan of"):
        packing_bench().gradients(packing_bench().step())


def test_the_bounds_are_those_that_are_stated() -> None:
    eps = {name: torch.finfo(dtype).eps for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16))}
    assert {"fp32": 1e-4} | {name: 8 * value for name, value in eps.items()} == BOUNDS


def sample(supervised: int, media: int) -> Encoded:
    tokens = torch.arange(4)
    return Encoded("x", tokens, tokens >= 4 - supervised, [{}] * media, 0)


@pytest.mark.parametrize(
    ("packs", "expected"),
    [
        ([[(1, 0)], [(1, 1)]], None),  # no sample has another before it
        ([[(1, 0)], [(1, 1), (1, 0), (1, 0)]], (1, 2)),
        ([[(1, 0), (1, 1), (1, 0)], [(1, 0), (1, 0)]], (0, 1)),  # its picture must be its own as well
        ([[(1, 0), (0, 1)], [(1, 0), (1, 0)]], (1, 1)),  # nothing of the first is predicted
    ],
)
def test_what_is_compared(packs: list[list[tuple[int, int]]], expected: tuple[int, int] | None) -> None:
    made = [[sample(*one) for one in pack] for pack in packs]
    assert pack_proof._to_compare(made) == (expected and (made[expected[0]], expected[1]))


def test_in_bf16_the_difference_is_within_the_bound(packing_bench: MakeBench) -> None:
    made = packing_bench("precision=bf16", precision="bf16")
    made.gradients(made.step())
    assert made.said[0].endswith("bound 6e-02)")  # type: ignore[attr-defined]
