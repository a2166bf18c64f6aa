"""What holds for every family: its encoding is the official processor's, and its parts are known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.models.families import (
    FAMILIES,
    FRAMES_FPS,
    Family,
    asked,
    collator_of,
    encoder_of,
    of_a_text,
    official,
    picture,
    processor_of,
    video,
)
from tests.support import CPU
from vlmft.encoding.encoder import Encoded
from vlmft.models.components import blocks_of, parameters_by_component
from vlmft.types import Image, Message, Sample, Video

SIZES = [(56, 56), (30, 44), (57, 111), (300, 280), (20, 260), (400, 90)]
each = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
with_video = pytest.mark.parametrize("family", [f for f in FAMILIES if f.video], ids=lambda family: family.name)


def assert_official(family: Family, sample: Sample) -> None:
    """Ids, pixels, grids and whatever else the model is given are those of the family's own processor."""
    processor = processor_of(family.name)
    # Without the answer, before which a template that thinks writes more than its generation prompt.
    encoded = encoder_of(family).encode_prompt(replace(sample, messages=sample.messages[:-1]))
    assert all(item.dtype != torch.float32 or item.numel() < 100 for m in encoded.media for item in m.values())
    found = collator_of(family)([encoded], padding_side="left").inputs
    found = family.spec.model_inputs(processor, found)
    expected = official(processor, sample)
    assert found["input_ids"].tolist() == expected["input_ids"].tolist()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if tensor.is_floating_point() and name != "pixel_values":
            torch.testing.assert_close(found[name].to(tensor.dtype), tensor)
        else:
            assert torch.equal(found[name], tensor.to(found[name].dtype)), name
    counted = encoder_of(family).count(sample)
    assert counted.num_vision_tokens == encoded.num_vision_tokens
    features = family.spec.feature_tokens(processor)
    assert sum(token in features for token in found["input_ids"][0].tolist()) == encoded.num_vision_tokens


@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.prefix], ids=lambda family: family.name)
def test_text_is_encoded_as_the_official_processor_does(family: Family) -> None:
    assert_official(family, asked("What colour is the shape?"))


@each
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_picture_is_encoded_as_the_official_processor_does(
    family: Family, tmp_path: Path, size: tuple[int, int]
) -> None:
    assert_official(family, asked(picture(tmp_path, *size), "What colour is the shape?"))


@each
def test_several_pictures_are_encoded_as_the_official_processor_does(family: Family, tmp_path: Path) -> None:
    pictures = [picture(tmp_path, *size, seed) for seed, size in enumerate(SIZES[:3])]
    assert_official(family, asked(*pictures[:2], "Is one of them like", pictures[2], "this one?"))


@with_video
@pytest.mark.parametrize(("num_frames", "size"), [(4, (56, 84)), (5, (64, 64)), (2, (300, 200))])
def test_a_video_is_encoded_as_the_official_processor_does(
    family: Family, tmp_path: Path, num_frames: int, size: tuple[int, int]
) -> None:
    assert_official(family, asked(video(tmp_path, num_frames, *size), "What happens?"))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.video and f.mixed], ids=lambda family: family.name)
def test_pictures_and_videos_together(family: Family, tmp_path: Path) -> None:
    assert_official(family, asked(picture(tmp_path, 56, 84), "Is it in", video(tmp_path, 4, 56, 56), "?"))


@each
def test_what_the_tower_gets_can_be_looked_at(family: Family, tmp_path: Path) -> None:
    white = tmp_path / "white.png"
    PIL.Image.new("RGB", (112, 56), "white").save(white)
    media = encoder_of(family).encode(asked(Image(white), "What?")).media
    shown = family.spec.shown(processor_of(family.name), media[0])
    assert shown.dtype == np.uint8 and shown.ndim == 4 and shown.shape[3] == 3
    assert (shown == 255).all()
    if family.video:
        media = encoder_of(family).encode(asked(video(tmp_path, 4, 56, 56), "What?")).media
        assert len(family.spec.shown(processor_of(family.name), media[0])) == 4


@each
def test_answers_and_their_ends_are_trained_and_nothing_else(family: Family, tmp_path: Path) -> None:
    turns = (
        Message("user", (picture(tmp_path, 56, 56), "What colour is the shape?")),
        Message("assistant", ("red",)),
        Message("user", ("And on the background?", picture(tmp_path, 84, 56))),
        Message("assistant", ("a black shape",)),
    )
    encoded = encoder_of(family).encode(Sample("mine/1", turns[:2] if family.prefix else turns))
    tokenizer = processor_of(family.name).tokenizer
    runs: list[list[int]] = [[]]
    for token, supervised in zip(encoded.input_ids.tolist(), encoded.supervised.tolist(), strict=True):
        if supervised:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    texts = [tokenizer.decode(run).strip(" ") for run in runs if run]
    assert texts == list(family.supervised[: 1 if family.prefix else 2])


@each
def test_what_is_trained_is_what_a_prompt_asks_for(family: Family) -> None:
    """The template's own prompt is what stands before an answer in training; else a merge says how to ask."""
    chat = encoder_of(family).chat
    assert chat.asked_by() == family.asked_by
    sample = asked(*((Image(Path("/a.png")),) if family.prefix else ()), "What colour?")
    trained = chat.render(sample)
    alone = chat.prompt(Sample("mine/1", sample.messages[:1]))
    assert (trained.text[: trained.spans[-1][0]] == alone) == (family.asked_by is None)


@each
def test_every_parameter_is_in_exactly_one_component(family: Family) -> None:
    model = family.spec.load_model(CPU)
    assert type(model).__name__ == family.model_class
    found = parameters_by_component(model, family.spec.component_paths)
    assert all(found.values()), {name: len(group) for name, group in found.items()}
    assert sum(len(group) for group in found.values()) == len(dict(model.named_parameters()))
    for component, paths in family.spec.block_paths.items():
        blocks = blocks_of(model, paths)
        assert len(blocks) >= 2
        names = [name for block in blocks for name, _ in model.get_submodule(block).named_parameters(prefix=block)]
        assert set(names) <= set(found[component])


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3"])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f.spec.masks], ids=lambda family: family.name)
def test_an_attention_that_passes_over_the_masks_is_refused(family: Family, attention: str) -> None:
    values = family.spec.model_dump() | {"attention": attention}
    with pytest.raises(ValueError, match=rf"{attention} reads no masks, which here say {family.spec.masks}; use sdpa"):
        type(family.spec)(**values)
    assert type(family.spec)(**(values | {"attention": "eager"})).attention == "eager"


@each
def test_transformers_reads_the_tiny_checkpoint(family: Family) -> None:
    model, found = AutoModelForImageTextToText.from_pretrained(family.spec.folder(), output_loading_info=True)
    assert type(model).__name__ == family.model_class
    assert not found["missing_keys"] and not found["unexpected_keys"] and not found["mismatched_keys"]
    assert sum(p.numel() for p in model.parameters()) < 3_000_000


@each
@torch.no_grad()
def test_a_sample_s_logits_do_not_depend_on_its_batch(family: Family, tmp_path: Path) -> None:
    """Texts, one picture, several, videos of different lengths: padded side by side, each is as it is by itself."""
    samples = [
        asked(*of_a_text(family, tmp_path), "What colour is the shape?"),
        asked(picture(tmp_path, 300, 100), "What colour?"),
        asked(picture(tmp_path, 56, 56, 1), "Like", picture(tmp_path, 84, 200, 2), "?"),
        asked(picture(tmp_path, 60, 60, 3), "?", answer="no"),
    ]
    if family.video:
        samples += [asked(video(tmp_path, frames, 56, 84), "What happens?") for frames in (4, 7)]
    model = family.spec.load_model(CPU).eval()
    encoder, collator, processor = encoder_of(family), collator_of(family), processor_of(family.name)
    encoded = [encoder.encode(sample) for sample in samples]

    def logits(group: list[Encoded]) -> torch.Tensor:
        inputs = family.spec.model_inputs(processor, collator(group).inputs)
        return model(**inputs, use_cache=False).logits

    kinds = collator.kinds(encoded)
    for kind in set(kinds):
        group = [sample for sample, own in zip(encoded, kinds, strict=True) if own == kind]
        for row, sample in zip(logits(group), group, strict=True):
            torch.testing.assert_close(row[: sample.num_tokens], logits([sample])[0], rtol=1e-3, atol=2e-4)
    # Behind weights that a class begins with zeros no picture would be seen, and little of this would prove anything.
    other = encoder.encode(asked(picture(tmp_path, 300, 100, 9), "What colour?"))
    assert float((logits([other]) - logits([encoded[1]])).abs().max()) > 0.01
    if family.video:  # the same frames in another order
        frames = video(tmp_path, 4, 56, 84).frames
        other = encoder.encode(asked(Video(tmp_path, frames[::-1], FRAMES_FPS), "What happens?"))
        assert float((logits([other]) - logits([encoded[4]])).abs().max()) > 0.01
