"""Pixels and token counts, compared with the official processor's own."""

from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from transformers import AutoProcessor

from tests.support import CPU, compose, encoding, literally, noise, save_noise, tiny, tiny_processor
from vlmft.errors import ConfigError, DataError
from vlmft.models import Qwen25VL
from vlmft.types import Image, Message, Sample

# Height, width. The tiny processor takes 28 * 28 to 64 * 28 * 28 pixels.
SIZES = [
    (56, 56),
    (1, 1),
    (5, 3),
    (28, 28),
    (30, 44),
    (57, 111),
    (20, 600),
    (600, 20),
    (300, 280),
    (901, 700),
    (28, 5600),
]


def budget(min_pixels: int | None, max_pixels: int | None) -> Qwen25VL:
    return Qwen25VL(
        **(dict(tiny()) | {"path": str(tiny().folder()), "min_pixels": min_pixels, "max_pixels": max_pixels})
    )


def inputs(family: Qwen25VL, processor: Any, pictures: list[PIL.Image.Image]) -> dict[str, torch.Tensor]:
    """What the model gets of pictures, the way a run computes it."""
    tokens = torch.full((1, 1), processor.image_token_id)
    media = [family.encode_image(processor, picture) for picture in pictures]
    assert all(item["patches"].dtype == torch.uint8 for item in media)
    return family.model_inputs(processor, family.collate(processor, tokens, media))


def assert_official(found: dict[str, torch.Tensor], processor: Any, pictures: list[PIL.Image.Image]) -> None:
    official = processor.image_processor(images=pictures, return_tensors="pt")
    assert torch.equal(found["image_grid_thw"], official["image_grid_thw"])
    assert found["pixel_values"].dtype == official["pixel_values"].dtype
    assert torch.equal(found["pixel_values"], official["pixel_values"])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_and_grid_are_the_official_processor_s_bit_for_bit(size: tuple[int, int]) -> None:
    processor, picture = tiny_processor(), noise(*size)
    assert_official(inputs(tiny(), processor, [picture]), processor, [picture])


def test_several_pictures_of_a_batch_keep_their_order() -> None:
    processor = tiny_processor()
    pictures = [noise(*size, seed=i) for i, size in enumerate(SIZES)]
    assert_official(inputs(tiny(), processor, pictures), processor, pictures)


def test_other_means_and_rescaling_are_the_checkpoint_s() -> None:
    processor = tiny().load_processor()
    processor.image_processor.image_mean = [0.5, 0.25, 0.125]
    processor.image_processor.image_std = [0.5, 1.0, 0.3]
    picture = noise(60, 90)
    assert_official(inputs(tiny(), processor, [picture]), processor, [picture])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tokens_predicted_from_the_size_are_the_real_ones(size: tuple[int, int]) -> None:
    processor, picture = tiny_processor(), noise(*size)
    predicted = tiny().num_image_tokens(processor, *size)
    media = tiny().encode_image(processor, picture)
    assert predicted == len(media["patches"]) // 4 == media["grid"].prod() // 4
    official = processor(text=["<|image_pad|>"], images=[picture], return_tensors="pt")
    assert predicted == official["input_ids"].shape[1]
    features = (
        tiny()
        .load_model(CPU)
        .get_image_features(official["pixel_values"], official["image_grid_thw"], return_dict=True)
    )
    assert predicted == len(features.pooler_output[0])


@pytest.mark.parametrize(
    ("min_pixels", "max_pixels", "size", "tokens"),
    [
        (None, None, (1000, 1000), 64),
        (None, 16 * 784, (1000, 1000), 16),
        (None, 16 * 784, (56, 56), 4),
        (16 * 784, None, (56, 56), 16),
        (None, None, (1, 1), 1),
        (4 * 784, 4 * 784, (28, 28), 4),
        (4 * 784, 4 * 784, (999, 999), 4),
    ],
)
def test_the_pixel_budget_is_respected(
    min_pixels: int | None, max_pixels: int | None, size: tuple[int, int], tokens: int
) -> None:
    family = budget(min_pixels, max_pixels)
    processor = family.load_processor()
    assert family.num_image_tokens(processor, *size) == tokens
    picture = noise(*size)
    found = inputs(family, processor, [picture])
    assert len(found["pixel_values"]) == 4 * tokens
    assert_official(found, processor, [picture])


def test_the_pixel_budget_is_saved_with_the_processor(tmp_path: Path) -> None:
    family = budget(4 * 784, 9 * 784)
    family.load_processor().save_pretrained(tmp_path)
    saved = AutoProcessor.from_pretrained(tmp_path)
    assert dict(saved.image_processor.size) == {"shortest_edge": 4 * 784, "longest_edge": 9 * 784}
    assert saved(text=["<|image_pad|>"], images=[noise(500, 500)])["image_grid_thw"].tolist() == [[1, 6, 6]]


def test_without_a_budget_the_checkpoint_s_own_holds() -> None:
    assert dict(tiny_processor().image_processor.size) == {"shortest_edge": 784, "longest_edge": 64 * 784}


@pytest.mark.parametrize(("low", "high"), [(5000, 4000), (65 * 784, None), (None, 783)])
def test_a_budget_whose_bounds_cross_is_refused(low: int | None, high: int | None) -> None:
    message = f"min_pixels={low or 784} is more than max_pixels={high or 64 * 784}"
    with pytest.raises(ConfigError, match=literally(message)):
        budget(low, high).load_processor()


def test_a_picture_too_narrow_for_the_family_is_the_sample_s_fault(tmp_path: Path) -> None:
    path = save_noise(tmp_path / "line.png", 2, 500)
    sample = Sample("mine/7", (Message("user", (Image(path), "?")), Message("assistant", ("red",))), "f.json:3")
    encoder, _ = encoding()
    for act in (encoder.encode, encoder.count, encoder.encode_prompt):
        with pytest.raises(DataError, match=r"^mine/7 \(f\.json:3\): .*500 x 2.*200"):
            act(sample)


def test_a_batch_without_a_picture_brings_no_pixels() -> None:
    collated = tiny().collate(tiny_processor(), torch.zeros(2, 3, dtype=torch.long), [])
    assert set(collated) == {"mm_token_type_ids"}
    assert tiny().model_inputs(tiny_processor(), collated).keys() == {"mm_token_type_ids"}


def test_the_batch_is_left_as_it_was() -> None:
    processor = tiny_processor()
    collated = tiny().collate(
        processor, torch.zeros(1, 1, dtype=torch.long), [tiny().encode_image(processor, noise(56, 56))]
    )
    before = {name: tensor.clone() for name, tensor in collated.items()}
    tiny().model_inputs(processor, collated)
    assert collated.keys() == before.keys()
    assert all(torch.equal(collated[name], before[name]) for name in before)


def test_the_embedded_default_is_this_family() -> None:
    assert isinstance(compose().model, Qwen25VL)
    real = compose("model=qwen25vl").model
    assert (real.path, real.precision) == ("Qwen/Qwen2.5-VL-7B-Instruct", "bf16")
    assert real.max_pixels == 1280 * 28 * 28
