"""What only Molmo 2 has: a chat template that is completed, overlapping crops, and pictures and videos as one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor

from tests.models.families import FAMILIES, asked, collator_of, encoder_of, official, picture, processor_of, video
from tests.support import CPU, compose, literally
from vlmft.config.media import PixelBudget
from vlmft.encoding.encoder import Encoder
from vlmft.errors import ConfigError, DataError
from vlmft.models.tiny.molmo2 import TEMPLATE
from vlmft.types import Message, Sample

(FAMILY,) = (family for family in FAMILIES if family.name == "molmo2")
TURNS = (
    Message("user", ("What colour",)),
    Message("assistant", ("red",)),
    Message("user", ("And?",)),
    Message("assistant", ("a black shape",)),
)


def own_processor() -> Any:
    """The processor as the checkpoint has it."""
    return AutoProcessor.from_pretrained(FAMILY.spec.folder())


def inputs_of(*samples: Sample) -> dict[str, torch.Tensor]:
    encoder = encoder_of(FAMILY)
    batch = collator_of(FAMILY)([encoder.encode(sample) for sample in samples])
    return FAMILY.spec.model_inputs(processor_of("molmo2"), batch.inputs)


class TestTemplate:
    @pytest.mark.parametrize("kind", ["text", "picture", "video"])
    def test_a_prompt_is_the_checkpoints_own(self, tmp_path: Path, kind: str) -> None:
        media = {"text": (), "picture": (picture(tmp_path, 90, 200),), "video": (video(tmp_path, 3, 60, 60),)}[kind]
        sample = asked(*media, "What colour is the shape?")
        processor = own_processor()
        assert processor.chat_template == TEMPLATE
        expected = official(processor, sample)["input_ids"][0].tolist()
        assert encoder_of(FAMILY).encode_prompt(sample).input_ids.tolist() == expected
        assert processor.tokenizer.decode(expected[:1]) == "<|im_end|>"

    def test_an_answer_that_is_given_stands_where_the_model_would_answer(self) -> None:
        chat = encoder_of(FAMILY).chat
        text = chat.render(Sample("mine/1", TURNS)).text
        assert text == (
            "<|im_end|><|im_start|>user\nWhat colour<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n"
            "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\na black shape<|im_end|>"
        )
        assert text.startswith(chat.prompt(Sample("mine/1", TURNS[:2])))
        assert text.startswith(chat.prompt(Sample("mine/1", TURNS)))
        turns = [{"role": turn.role, "content": turn.text} for turn in TURNS]
        own = own_processor().apply_chat_template(turns, tokenize=False)
        assert text == "<|im_end|>" + own.replace("\n <|im_start|>assistant", "\n<|im_start|>assistant") + "<|im_end|>"

    def test_it_is_saved_and_read_again_as_it_is(self, tmp_path: Path) -> None:
        processor = processor_of("molmo2")
        processor.save_pretrained(tmp_path)
        saved = AutoProcessor.from_pretrained(tmp_path).chat_template
        assert saved == processor.chat_template != TEMPLATE
        spec = type(FAMILY.spec)(**(FAMILY.spec.model_dump() | {"path": str(tmp_path)}))
        assert spec.load_processor().chat_template == saved

    def test_a_system_turn_is_refused_by_it(self) -> None:
        sample = Sample("mine/1", (Message("system", ("Be brief.",)), *TURNS[:2]))
        message = "mine/1 (): the chat template refuses the conversation: Conversation roles must alternate user"
        with pytest.raises(DataError, match=literally(message)):
            encoder_of(FAMILY).encode(sample)


def test_the_model_takes_pictures_and_videos_together_where_transformers_does_not(tmp_path: Path) -> None:
    """If the first part fails, the library has mended what `collate` works around (modeling_molmo2.py, line 827)."""
    model = FAMILY.spec.load_model(CPU).eval()
    images, videos = inputs_of(asked(picture(tmp_path, 56, 84), "?")), inputs_of(asked(video(tmp_path, 3, 60, 60), "?"))
    with pytest.raises(ValueError, match="pixel_values and pixel_values_videos are provided at the same time"):
        model(**images | videos)
    both = asked(video(tmp_path, 3, 60, 60), "Is it in", picture(tmp_path, 56, 84), "?")
    inputs = inputs_of(both)
    assert not any("video" in name for name in inputs)
    assert inputs["image_grids"].tolist() == [[3, 3, 3, 4], [3 * 2, 2, 0, 0]]  # the template puts pictures first
    assert inputs["image_num_crops"].tolist() == [2 + 1, 3]
    assert torch.equal(inputs["pixel_values"][:3], images["pixel_values"])
    assert torch.equal(inputs["pixel_values"][3:], videos["pixel_values_videos"])
    pooling = inputs["image_token_pooling"]
    assert pooling[:21, :4].tolist() == images["image_token_pooling"].tolist() and (pooling[:21, 4:] == -1).all()
    own = videos["video_token_pooling"]
    assert torch.equal(pooling[21:], torch.where(own >= 0, own + 3 * 25, own))
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()


def test_a_videos_frames_are_the_same_handed_over_as_a_pictures(tmp_path: Path) -> None:
    model = FAMILY.spec.load_model(CPU).eval()
    inputs = inputs_of(asked(video(tmp_path, 3, 60, 60), "What happens?"))
    frames, rows, columns = inputs["video_grids"][0].tolist()
    names = {"pixel_values": "pixel_values_videos", "image_token_pooling": "video_token_pooling"}
    as_picture = {name: tensor for name, tensor in inputs.items() if "video" not in name}
    as_picture |= {name: inputs[other] for name, other in names.items()}
    as_picture["image_grids"] = torch.tensor([[frames * rows, columns, 0, 0]])
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, model(**as_picture).logits)


class TestBudget:
    def test_pictures_have_as_many_crops_as_their_budget_allows(self, tmp_path: Path) -> None:
        crop = 70 * 70
        size, processor = (300, 280), processor_of("molmo2")
        seen = [FAMILY.spec.seen_image(processor, size, PixelBudget(max_pixels=n * crop + 1)) for n in (1, 2, 4, 9)]
        assert seen == [(70, 70), (112, 70), (112, 112), (154, 154)]
        sample = asked(picture(tmp_path, *size), "What?")
        counts = [self.with_budget(sample, f"model.image.max_pixels={n * crop}") for n in (1, 2, 4, 9)]
        assert counts == [(2, 9 + 9), (3, 9 + 4 * 3), (5, 9 + 4 * 4), (10, 9 + 6 * 6)]
        assert self.with_budget(sample) == counts[2]

    def with_budget(self, sample: Sample, *words: str) -> tuple[int, int]:
        spec = compose("model=tiny_molmo2", *words).model
        encoded = Encoder(spec, spec.load_processor()).encode(sample)
        return len(encoded.media[0]["patches"]), encoded.num_vision_tokens

    @pytest.mark.parametrize(
        ("word", "message"),
        [
            ("model.image.max_pixels=4899", "max_pixels=4899 is less than one crop of 70 x 70 pixels; raise it"),
            ("model.image.min_pixels=4900", "this checkpoint sees pictures in crops of 70 x 70 pixels, as many as"),
            ("model.video.max_pixels=9", "model.video: max_pixels=9: this checkpoint sees every frame at 70 x 70"),
        ],
    )
    def test_what_cannot_be_had_is_refused(self, word: str, message: str) -> None:
        with pytest.raises(ConfigError, match=literally(message)):
            compose("model=tiny_molmo2", word).model.load_processor()

    def test_its_own_sampler_is_left_with_the_runs_rule(self) -> None:
        found = processor_of("molmo2").video_processor
        assert (found.num_frames, found.max_fps, found.fps, found.do_sample_frames) == (16, 2.0, None, True)
        words = ("model.video.fps=null", "model.video.num_frames=7")
        found = compose("model=tiny_molmo2", *words).model.load_processor().video_processor
        assert (found.num_frames, found.max_fps, found.fps) == (7, None, None)
