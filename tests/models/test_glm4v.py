"""What GLM-4.xV makes of a budget and of a video, and what transformers' own class cannot do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.models.families import FAMILIES, Family, asked, collator_of, encoder_of, picture, processor_of, video
from tests.support import CPU, compose
from vlmft.config.media import PixelBudget, VideoRule
from vlmft.errors import ConfigError, DataError
from vlmft.types import Clip, Sample

both = pytest.mark.parametrize("name", ["glm4v", "glm46v"])


def family(name: str = "glm4v") -> Family:
    return next(family for family in FAMILIES if family.name == name)


@pytest.mark.parametrize(
    ("budget", "seen"),
    [
        ({}, (252, 168)),
        ({"max_pixels": 28 * 28 * 10}, (84, 56)),
        ({"max_pixels": 28 * 28 * 20}, (140, 84)),
        ({"min_pixels": 28 * 28 * 60}, (280, 196)),
        ({"height": 60, "width": 100}, (56, 112)),
    ],
)
def test_a_budget_is_a_pictures_own_area_and_not_that_of_its_two_frames(
    budget: dict[str, int], seen: tuple[int, int]
) -> None:
    assert family().spec.seen_image(processor_of("glm4v"), (250, 160), PixelBudget(**budget)) == seen


def test_the_processors_are_saved_with_the_budgets() -> None:
    words = ("model.image.max_pixels=7840", "model.video.max_pixels=7840", "model.video.max_frames=8")
    spec = compose("model=tiny_glm4v", *words).model
    processor = spec.load_processor()
    images, videos = processor.image_processor, processor.video_processor
    assert (images.size["shortest_edge"], images.size["longest_edge"]) == (2 * 784, 2 * 7840)
    assert (videos.size["shortest_edge"], videos.size["longest_edge"]) == (2 * 784, 8 * 7840)
    assert videos.fps == 2.0
    height, width = spec.seen_image(processor, (250, 160), spec.image)
    assert images.get_number_of_image_patches(250, 160) * 14**2 == height * width == 84 * 56
    height, width = spec.seen_frame(processor, Clip(250, 160, [i / 2 for i in range(8)]), spec.video)
    assert videos.get_num_of_video_patches(8, 250, 160) * 14**2 == 4 * height * width == 4 * 84 * 56


def test_a_rule_without_a_rate_leaves_the_processors_own() -> None:
    words = ("model.video.fps=null", "model.video.num_frames=4", "model.video.min_frames=null", "model.video.height=56")
    spec = compose("model=tiny_glm4v", *words, "model.video.max_frames=null", "model.video.width=84").model
    videos = spec.load_processor().video_processor
    assert (videos.fps, videos.num_frames) == (2, 4)
    assert (videos.size["shortest_edge"], videos.size["longest_edge"]) == (4 * 56 * 84, 4 * 56 * 84)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 8])
def test_a_videos_budget_is_each_frames(num_frames: int) -> None:
    clip = Clip(250, 160, [i / 2 for i in range(num_frames)])
    spec, processor = family().spec, processor_of("glm4v")
    height, width = spec.seen_frame(processor, clip, VideoRule(max_pixels=7840))
    assert 0.5 * 7840 < height * width <= 7840
    assert spec.seen_frame(processor, clip, VideoRule(height=56, width=84)) == (56, 84)
    assert len(spec.video_text(processor, clip, VideoRule(max_pixels=7840)).runs) == -(-num_frames // 2)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_bounds_that_cross_are_refused(kind: str) -> None:
    spec = compose("model=tiny_glm4v", f"model.{kind}.max_pixels=700").model
    message = f"model.{kind}: min_pixels=784 is more than max_pixels=700 .* own, 784 and 50176"
    with pytest.raises(ConfigError, match=message):
        spec.load_processor()


def test_a_narrow_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a picture of 600 x 2 pixels cannot be resized: .* crop it"):
        encoder_of(family()).count(asked(picture(tmp_path, 2, 600), "What?"))


@pytest.mark.parametrize(("name", "times"), [("glm4v", ["0", "1", "2"]), ("glm46v", ["0.3 seconds", "1.3 seconds"])])
def test_each_slice_is_written_as_a_picture_with_its_first_frames_time(name: str, times: list[str]) -> None:
    clip = Clip(56, 84, [0.0, 0.5, 1.0, 1.5, 2.9] if name == "glm4v" else [0.26, 0.76, 1.26, 1.76])
    written = family(name).spec.video_text(processor_of(name), clip, PixelBudget())
    assert written.text == "".join(f"<|begin_of_image|><|image|><|end_of_image|>{time}" for time in times)
    assert written.runs == (6,) * len(times)


def mixed(folder: Path) -> Sample:
    return asked(picture(folder, 28, 56), "Is it in", video(folder, 4, 28, 28), "?")


def test_a_videos_tokens_are_told_from_a_pictures(tmp_path: Path) -> None:
    batch = collator_of(family())(
        [encoder_of(family()).encode(mixed(tmp_path)), encoder_of(family()).encode(asked("?"))]
    )
    types = batch.inputs["mm_token_type_ids"]
    features = batch.inputs["input_ids"] == processor_of("glm4v").image_token_id
    assert types[features].tolist() == [1, 1, 2, 2]
    assert not types[~features].any()


@both
@torch.no_grad()
def test_transformers_own_class_takes_no_picture_beside_a_video(name: str, tmp_path: Path) -> None:
    """When this fails, `Glm4v.load_model` need change nothing any more."""
    batch = collator_of(family(name))([encoder_of(family(name)).encode(mixed(tmp_path))])
    inputs = family(name).spec.model_inputs(processor_of(name), dict(batch.inputs))
    plain = AutoModelForImageTextToText.from_pretrained(family(name).spec.folder())
    with pytest.raises(ValueError, match="Image features and image tokens do not match, tokens: 4, features: 2"):
        plain(**inputs)
    assert family(name).spec.load_model(CPU)(**inputs).logits.isfinite().all()


def say(role: str, *content: str) -> dict[str, Any]:
    kinds = {"IMAGE": {"type": "image"}, "VIDEO": {"type": "video"}}
    return {"role": role, "content": [kinds.get(part, {"type": "text", "text": part}) for part in content]}


IMAGE, VIDEO = "<|begin_of_image|><|image|><|end_of_image|>", "<|begin_of_video|><|video|><|end_of_video|>"
QUESTION = f"[gMASK]<sop><|system|>\nBe brief.<|user|>\nIs {IMAGE} in {VIDEO}?<|assistant|>\n"


@pytest.mark.parametrize(
    ("name", "answer", "text"),
    [
        ("glm4v", "yes", f"{QUESTION}yes<|user|>\nWhy?<|assistant|>\n"),
        ("glm4v", "<think>Look.</think><answer>yes</answer>", f"{QUESTION}<think>Look.</think><answer>yes</answer>"),
        ("glm46v", "yes", f"{QUESTION}<think></think>\nyes<|user|>\nWhy?<|assistant|>"),
        ("glm46v", "<think>Look.</think>\nyes", f"{QUESTION}<think></think>\nyes<|user|>\nWhy?<|assistant|>"),
    ],
)
def test_the_chat_template_writes_what_glms_own_does(name: str, answer: str, text: str) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        say("user", "Is ", "IMAGE", " in ", "VIDEO", "?"),
        {"role": "assistant", "content": answer},
    ]
    written = processor_of(name).apply_chat_template(
        [*turns, say("user", "Why?")], tokenize=False, add_generation_prompt=True
    )
    assert written.startswith(text)


@pytest.mark.parametrize("answer", ["yes", "<think>Look.</think><answer>yes</answer>"])
def test_an_answer_with_or_without_thinking_is_trained_as_it_stands(answer: str) -> None:
    encoded = encoder_of(family()).encode(asked("Is it?", answer=answer))
    tokenizer = processor_of("glm4v").tokenizer
    assert tokenizer.decode(encoded.input_ids[encoded.supervised]) == f"{answer}<|endoftext|>"
