"""Pixels and token counts, compared with the official processor's own."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoProcessor

from tests.support import CPU, compose, encoding, literally, noise, save_noise, tiny, tiny_processor
from vlmft.config.media import PixelBudget, VideoRule
from vlmft.errors import ConfigError, DataError
from vlmft.models import Qwen25VL
from vlmft.models.spec import MediumText
from vlmft.types import Clip, Image, Message, Sample

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


def budget(min_pixels: int | None = None, max_pixels: int | None = None, **image: int) -> Qwen25VL:
    pictures = PixelBudget(min_pixels=min_pixels, max_pixels=max_pixels, **image)
    return Qwen25VL(**(dict(tiny()) | {"path": str(tiny().folder()), "image": pictures}))


def inputs(family: Qwen25VL, processor: Any, pictures: list[PIL.Image.Image]) -> dict[str, torch.Tensor]:
    """What the model gets of pictures, the way a run computes it."""
    tokens = torch.full((1, 1), processor.image_token_id)
    media = [family.encode_image(processor, np.array(picture), family.image) for picture in pictures]
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
    predicted = tiny().image_text(processor, size, PixelBudget()).num_features
    media = tiny().encode_image(processor, np.array(picture), PixelBudget())
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
    assert family.image_text(processor, size, family.image) == MediumText("<|image_pad|>", (tokens,))
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
    with pytest.raises((ConfigError, ValueError), match=literally(message)):
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
        processor,
        torch.zeros(1, 1, dtype=torch.long),
        [tiny().encode_image(processor, np.array(noise(56, 56)), PixelBudget())],
    )
    before = {name: tensor.clone() for name, tensor in collated.items()}
    tiny().model_inputs(processor, collated)
    assert collated.keys() == before.keys()
    assert all(torch.equal(collated[name], before[name]) for name in before)


def test_the_embedded_default_is_this_family() -> None:
    assert isinstance(compose().model, Qwen25VL)
    real = compose("model=qwen25vl").model
    assert (real.path, real.precision) == ("Qwen/Qwen2.5-VL-7B-Instruct", "bf16")
    assert real.image.max_pixels == 1280 * 28 * 28


@pytest.mark.parametrize(
    ("size", "seen"), [((56, 112), (56, 112)), ((60, 100), (56, 112)), ((30, 30), (28, 28)), ((5, 200), (28, 196))]
)
def test_a_fixed_size_is_rounded_to_whole_blocks(size: tuple[int, int], seen: tuple[int, int]) -> None:
    family = budget(height=size[0], width=size[1])
    processor = family.load_processor()
    for original in ((300, 40), (56, 56), (1000, 1000)):
        assert family.seen_image(processor, original, family.image) == seen
        media = family.encode_image(processor, np.array(noise(*original)), family.image)
        assert media["grid"].tolist() == [1, seen[0] // 14, seen[1] // 14]
        assert family.image_text(processor, original, family.image).num_features == seen[0] * seen[1] // 784


def test_a_fixed_size_outside_of_the_limits_is_refused() -> None:
    message = (
        "model.image: height=500 width=500 is 504 x 504 in whole blocks of 28 pixels, an area of 254016, outside of "
        "min_pixels=784 and max_pixels=50176; change the size, or the bounds"
    )
    with pytest.raises(ConfigError, match=literally(message)):
        budget(height=500, width=500).load_processor()


def frames(num_frames: int, height: int, width: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    return np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def clip(num_frames: int, height: int, width: int, fps: float = 2.0) -> Clip:
    return Clip(height, width, [number / fps for number in range(num_frames)])


def video_ids(processor: Any, seen: Clip) -> torch.Tensor:
    written = tiny().video_text(processor, seen, VideoRule())
    assert written.text == "<|video_pad|>"
    return torch.full((1, written.num_features), processor.video_token_id)


@pytest.mark.parametrize(
    ("num_frames", "size"), [(2, (56, 56)), (4, (60, 90)), (5, (56, 112)), (1, (30, 44)), (6, (901, 700))]
)
@pytest.mark.parametrize("fps", [1.0, 2.0, 8.0])
def test_a_video_is_the_official_processor_s_bit_for_bit(num_frames: int, size: tuple[int, int], fps: float) -> None:
    processor, pixels, seen = tiny_processor(), frames(num_frames, *size), clip(num_frames, *size, fps)
    rule = VideoRule()
    media = tiny().encode_video(processor, pixels, seen, rule)
    assert media["video_patches"].dtype == torch.uint8
    ids = video_ids(processor, seen)
    found = tiny().model_inputs(processor, tiny().collate(processor, ids, [media]))
    official = processor(
        text=["<|video_pad|>"],
        videos=[torch.from_numpy(pixels).permute(0, 3, 1, 2)],
        video_metadata=[{"fps": fps, "total_num_frames": num_frames, "frames_indices": list(range(num_frames))}],
        do_sample_frames=False,
        return_tensors="pt",
    )
    assert torch.equal(ids, official["input_ids"])
    assert torch.equal(found["video_grid_thw"], official["video_grid_thw"])
    assert torch.equal(found["pixel_values_videos"], official["pixel_values_videos"])
    assert torch.equal(found["mm_token_type_ids"], torch.as_tensor(official["mm_token_type_ids"]).int())
    if num_frames > 1:
        assert found["second_per_grid_ts"].tolist() == pytest.approx(
            [float(seconds) for seconds in official["second_per_grid_ts"]]
        )
    features = (
        tiny()
        .load_model(CPU)
        .get_video_features(official["pixel_values_videos"], official["video_grid_thw"], return_dict=True)
    )
    assert ids.shape[1] == len(features.pooler_output[0])


def test_time_reaches_the_model_s_positions() -> None:
    """Twice as fast is half as far apart, by the checkpoint's own tokens_per_second."""
    processor, model = tiny_processor(), tiny().load_model(CPU)
    spread = []
    for fps in (1.0, 0.5):
        media = tiny().encode_video(processor, frames(4, 56, 56), clip(4, 56, 56, fps), VideoRule())
        ids = video_ids(processor, clip(4, 56, 56, fps))
        inputs = tiny().model_inputs(processor, tiny().collate(processor, ids, [media]))
        positions, _ = model.model.get_rope_index(
            ids, inputs["mm_token_type_ids"], None, inputs["video_grid_thw"], inputs["second_per_grid_ts"]
        )
        spread.append(int(positions[0].max() - positions[0].min()))
    per_second = model.config.vision_config.tokens_per_second
    assert spread == [2 * per_second, 4 * per_second]


def test_the_rule_for_frames_is_saved_with_the_processor(tmp_path: Path) -> None:
    for rule, kept in (
        (VideoRule(fps=1.5, min_frames=2, max_frames=10, max_pixels=9 * 784), (None, 1.5, 2, 10)),
        (VideoRule(num_frames=12), (12, None, 4, 768)),
    ):
        family = Qwen25VL(**(dict(tiny()) | {"path": str(tiny().folder()), "video": rule}))
        family.load_processor().save_pretrained(tmp_path)
        saved = AutoProcessor.from_pretrained(tmp_path).video_processor
        assert (saved.num_frames, saved.fps, saved.min_frames, saved.max_frames) == kept
        assert saved.do_sample_frames
        assert saved.size["longest_edge"] == (rule.max_pixels or 64 * 784)


def test_pictures_and_videos_of_a_batch_keep_their_order() -> None:
    processor = tiny_processor()
    media = [
        tiny().encode_video(processor, frames(4, 56, 84), clip(4, 56, 84), VideoRule()),
        tiny().encode_image(processor, np.array(noise(56, 56)), PixelBudget()),
        tiny().encode_video(processor, frames(2, 28, 28), clip(2, 28, 28, 8.0), VideoRule()),
        tiny().encode_image(processor, np.array(noise(84, 56)), PixelBudget()),
    ]
    inputs = tiny().collate(processor, torch.zeros(1, 1, dtype=torch.long), media)
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 4], [1, 6, 4]]
    assert inputs["video_grid_thw"].tolist() == [[2, 4, 6], [1, 2, 2]]
    assert inputs["second_per_grid_ts"].tolist() == [1.0, 0.25]
    assert len(inputs["video_patches"]) == 2 * 24 + 4
