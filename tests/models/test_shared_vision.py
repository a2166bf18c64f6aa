"""A pair's answers share one pass of the vision tower, and learn as if each had its own."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.families import FAMILIES, Family, asked, collator_of, encoder_of, picture, processor_of, video
from tests.support import CPU
from vlmft.encoding.collate import Batch, Collator
from vlmft.encoding.encoder import Encoded
from vlmft.models.packing import use_packed_attention
from vlmft.models.shared_vision import SharedVision
from vlmft.training.loss import supervised_loss
from vlmft.types import Part

APART = {"mllama"}
"""Families whose LLM looks at the tower's states by itself: they make no features apart from the text."""
IN_DOUBLE = {"molmo2"}
"""Its gradients of a video's positions cancel so far that float32 leaves two digits; some other towers need float32."""
FAST = {"qwen25vl", "qwen3vl", "internvl3", "smolvlm", "llava_onevision"}


def marked(families: list[Family]) -> Any:
    return pytest.mark.parametrize(
        "family",
        [pytest.param(f, id=f.name, marks=[] if f.name in FAST else pytest.mark.slow) for f in families],
    )


def encoded_pairs(family: Family, *questions: tuple[Part, ...]) -> list[Encoded]:
    """Each question with a short answer, then each with a longer one."""
    encoder = encoder_of(family)
    return [
        encoder.encode(asked(*question, answer=answer)) for answer in ("red", "a black shape") for question in questions
    ]


def pairs(family: Family, *questions: tuple[Part, ...]) -> Batch:
    """As the model takes them, in rows."""
    batch = collator_of(family)(encoded_pairs(family, *questions))
    return Batch(family.spec.model_inputs(processor_of(family.name), batch.inputs), batch.labels)


def seen(model: Any, family: Family, batch: Batch, times: int) -> tuple[Any, dict[str, Any], int]:
    """The loss, the gradients of all weights, and how many numbers of pixels went into the tower."""
    numbers: list[int] = []

    def count(module: Any, args: Any, kwargs: Any) -> None:
        numbers.append((args[0] if args else kwargs["pixel_values"]).numel())

    tower = model.get_submodule(family.spec.component_paths["vision_tower"][0])
    handle = tower.register_forward_pre_hook(count, with_kwargs=True)
    model.zero_grad(set_to_none=True)
    with SharedVision(model).repeated(times):
        loss = supervised_loss(model, batch.inputs, batch.labels)
    loss.backward()
    handle.remove()
    assert len(numbers) == 1
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, numbers[0]


def check_shared(family: Family, *questions: tuple[Part, ...]) -> None:
    model = family.spec.load_model(CPU).to(torch.float64 if family.name in IN_DOUBLE else torch.float32)
    assert SharedVision(model).works == (family.name not in APART)
    batch = pairs(family, *questions)
    loss, gradients, numbers = seen(model, family, batch, times=1)
    ways = [batch]
    if family.unpacked is None:  # the same sequences in a pack
        use_packed_attention(model)
        packs = Collator(family.spec, processor_of(family.name), packs=True)
        ways.append(Batch(*packs.for_loss(encoded_pairs(family, *questions), model, times=2)))
    for way in ways:
        shared_loss, shared_gradients, shared_numbers = seen(model, family, way, times=2)
        assert shared_numbers == (numbers if family.name in APART else numbers // 2)
        torch.testing.assert_close(shared_loss, loss, rtol=1e-5, atol=0)
        assert_same(shared_gradients, gradients)
    assert any(name.startswith(family.tower) for name in gradients)
    assert not any(name in vars(module) for module in model.modules() for name in ("get_image_features",))


def assert_same(shared_gradients: dict[str, Any], gradients: dict[str, Any]) -> None:
    assert shared_gradients.keys() == gradients.keys()
    largest = max(float(gradient.norm()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        off, size = float((shared_gradients[name] - gradient).norm()), float(gradient.norm())
        # Some are 0 but for the rounding of either way: softmax does not see the bias of a key.
        assert off < 1e-5 * size + 1e-7 * largest, f"{name}: {off} of {size}, the largest {largest}"


@marked(FAMILIES)
def test_pictures_are_seen_once_and_all_gradients_are_the_same(family: Family, tmp_path: Path) -> None:
    check_shared(
        family,
        (picture(tmp_path, 60, 90), "What colour is the shape?"),
        (picture(tmp_path, 90, 50, seed=1), "Name the colour."),
    )


@marked([f for f in FAMILIES if f.video])
def test_videos_are_seen_once_and_all_gradients_are_the_same(family: Family, tmp_path: Path) -> None:
    check_shared(family, (video(tmp_path, 4, 56, 84), "What happens?"))


def test_text_alone_and_media_that_are_no_equal_blocks(tmp_path: Path) -> None:
    family = next(f for f in FAMILIES if f.name == "qwen25vl")
    model = family.spec.load_model(CPU).float()
    text = pairs(family, ("What colour is the shape?",)).inputs
    with SharedVision(model).repeated(2):
        shared = model(**text).logits
    assert torch.equal(shared, model(**text).logits)
    inputs = pairs(family, (picture(tmp_path, 60, 90), "What colour is the shape?")).inputs
    with SharedVision(model).repeated(3), pytest.raises(ValueError, match="are no 3 equal blocks"):
        model(**inputs)
    assert model(**inputs).logits.isfinite().all()
