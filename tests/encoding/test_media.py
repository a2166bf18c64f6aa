"""What is decided about a sample's media before they are decoded, and that it is what the model then gets."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
import torch

from tests.support import encoding, literally, save_noise, tiny, tiny_processor
from vlmft.config.media import Augmentation, MediaRules, PixelBudget, VideoRule
from vlmft.encoding.encoder import Encoder
from vlmft.errors import DataError
from vlmft.types import Image, Labels, Message, Part, Preference, Rated, Sample, Solution, Target, Video


def asked(*parts: Part, answer: str = "red", target: Target | None = None, **rules: Any) -> Sample:
    turns = (Message("user", parts), *([] if target else [Message("assistant", (answer,))]))
    return Sample("mine/7", turns, "data.json:12", MediaRules(**rules), target)


def frames_of(folder: Path, count: int, height: int = 56, width: int = 56, fps: float | None = 4.0) -> Video:
    paths = [save_noise(folder / f"{number:02d}.png", height, width, seed=number) for number in range(count)]
    return Video(folder, tuple(paths), fps)


@pytest.fixture
def encoder() -> Encoder:
    return encoding()[0]


@pytest.mark.parametrize(
    ("budget", "tokens"),
    [
        (PixelBudget(), 64),
        (PixelBudget(max_pixels=16 * 784), 16),
        (PixelBudget(min_pixels=16 * 784, max_pixels=25 * 784), 25),
        (PixelBudget(height=56, width=84), 6),
    ],
)
def test_an_entry_s_budget_goes_before_the_run_s(
    tmp_path: Path, encoder: Encoder, budget: PixelBudget, tokens: int
) -> None:
    sample = asked(Image(save_noise(tmp_path / "a.png", 400, 400)), "What?", image=budget)
    encoded = encoder.encode(sample)
    assert encoded.num_vision_tokens == tokens == encoder.count(sample).num_vision_tokens
    assert len(encoded.media[0]["patches"]) == 4 * tokens


@pytest.mark.parametrize(
    ("rule", "frames"),
    [
        (VideoRule(), 5),  # the tiny checkpoint's own: 2 a second
        (VideoRule(num_frames=3), 3),
        (VideoRule(fps=4.0), 9),
        (VideoRule(fps=4.0, max_frames=6), 6),
        (VideoRule(fps=0.1, min_frames=2), 2),
    ],
)
def test_an_entry_s_rule_for_frames_goes_before_the_run_s(
    tmp_path: Path, encoder: Encoder, rule: VideoRule, frames: int
) -> None:
    sample = asked(frames_of(tmp_path, 9), "What?", video=rule)
    counted, encoded = encoder.count(sample), encoder.encode(sample)
    clip = counted.media[0].clip
    assert clip is not None and clip.num_frames == frames
    slices = -(-frames // 2)
    assert encoded.media[0]["video_grid"].tolist() == [slices, 4, 4]
    assert encoded.num_vision_tokens == counted.num_vision_tokens == 4 * slices


def test_a_video_and_a_picture_keep_their_places(tmp_path: Path, encoder: Encoder) -> None:
    sample = asked("See", frames_of(tmp_path, 4), "and", Image(save_noise(tmp_path / "a.png", 84, 56)), "?")
    encoded = encoder.encode(sample)
    processor = tiny_processor()
    kinds = [
        "v" if i == processor.video_token_id else "i"
        for i in encoded.input_ids.tolist()
        if i in (processor.video_token_id, processor.image_token_id)
    ]
    assert "".join(kinds) == "v" * 8 + "i" * 6
    assert ["video_patches" in item for item in encoded.media] == [True, False]


def test_too_many_vision_tokens_are_refused_from_headers(tmp_path: Path, encoder: Encoder) -> None:
    sample = asked(Image(save_noise(tmp_path / "a.png", 400, 400)), "What?", max_vision_tokens=63)
    message = (
        "mine/7 (data.json:12): 64 vision tokens exceed max_vision_tokens=63; raise it, or lower image.max_pixels, "
        "video.max_pixels or video.fps (nothing is cut)"
    )
    with pytest.raises(DataError, match=literally(message)):
        encoder.count(sample)
    assert encoder.count(asked(*sample.messages[0].parts, max_vision_tokens=64)).num_vision_tokens == 64


def test_augmentation_hangs_on_the_key_and_held_out_samples_have_none(tmp_path: Path, encoder: Encoder) -> None:
    sample = asked(
        Image(save_noise(tmp_path / "a.png", 112, 112)), "What?", augment=Augmentation(crop=0.5, flip=0.5, colour=0.3)
    )
    plain = encoder.encode(asked(*sample.messages[0].parts)).media[0]["patches"]
    assert torch.equal(encoder.encode(sample).media[0]["patches"], plain)
    assert torch.equal(encoder.encode_prompt(sample).media[0]["patches"], plain)
    drawn = [encoder.encode(sample, key).media[0]["patches"] for key in (1, 2, 3, 1)]
    assert torch.equal(drawn[0], drawn[3])
    assert len({bytes(patches.numpy().tobytes()) for patches in drawn}) == 3
    for key in range(20):  # a crop has other sizes, so other tokens: counting knows them
        encoded, counted = encoder.encode(sample, key), encoder.count(sample, key)
        assert encoded.num_vision_tokens == counted.num_vision_tokens == len(encoded.media[0]["patches"]) // 4


def test_two_pictures_of_a_sample_are_changed_each_by_itself(tmp_path: Path, encoder: Encoder) -> None:
    path = Image(save_noise(tmp_path / "a.png", 112, 112))
    encoded = encoder.encode(asked(path, path, "Same?", augment=Augmentation(colour=0.5)), key=5)
    first, second = (item["patches"] for item in encoded.media)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("form", ["pixels", "unit", "thousand"])
def test_boxes_follow_their_picture_through_crop_flip_and_resizing(tmp_path: Path, form: str, encoder: Encoder) -> None:
    height, width, box = 300, 420, (60, 90, 200, 240)
    picture = PIL.Image.new("RGB", (width, height), "white")
    PIL.ImageDraw.Draw(picture).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=(200, 0, 0))
    picture.save(tmp_path / "a.png")
    scale = {"pixels": (1, 1), "unit": (1 / width, 1 / height), "thousand": (1000 / width, 1000 / height)}[form]
    numbers = [round(value * scale[i % 2], 4) for i, value in enumerate(box)]
    sample = asked(
        Image(tmp_path / "a.png"),
        "Where is it?",
        answer=f'{{"bbox_2d": {numbers}}}',
        augment=Augmentation(crop=0.6, flip=0.5),
        coordinates=form,
    )
    flips = set()
    for key in [None, *range(12)]:
        encoded, counted = encoder.encode(sample, key), encoder.count(sample, key)
        shown = tiny().shown(tiny_processor(), encoded.media[0])[0].astype(int)
        rows, columns = np.nonzero((shown[..., 0] - shown[..., 1]) > 100)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        text = tiny_processor().tokenizer.decode(encoded.input_ids)
        found = [int(number) for number in re.search(r"bbox_2d\": \[([^]]*)\]", text)[1].split(",")]  # type: ignore[index]
        assert np.abs(np.array(found) - seen).max() <= 1.5, (key, found, seen)
        flips.add(counted.media[0].view.flipped)
    assert flips == {True, False}


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (Preference("a", "b"), "it holds a chosen and a rejected answer (trainer=dpo learns from such samples)"),
        (Rated("a", False), "it holds one answer, good or bad (trainer=kto learns from such samples)"),
        (Solution("a"), "it holds a solution to check answers against (trainer=grpo learns from such samples)"),
        (Labels(("a",)), "it holds a class (trainer=classification learns from such samples)"),
    ],
)
def test_a_sample_without_an_answer_is_no_sft_sample(encoder: Encoder, target: Target, says: str) -> None:
    with pytest.raises(
        DataError,
        match=literally(f"mine/7 (data.json:12): {says}; trainer=sft learns from answers: "),
    ):
        encoder.encode(asked("What?", target=target))
