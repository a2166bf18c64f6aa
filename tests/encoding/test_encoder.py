import itertools
import pickle
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import PIL.ImageOps
import pytest
import torch

from tests.support import encoding, model_inputs, noise, read_llava, save_noise, tiny_processor, write_llava
from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.encoding.probe import probe_sample
from vlmft.errors import DataError
from vlmft.types import Image, Message, Sample

Make = Callable[..., Sample]

# What the loss asks for in each row of tests/support.py's file, token by token joined: answers and their ends.
SUPERVISED = {
    "mine/one": ["red<|im_end|>"],
    "mine/two": ["seven<|im_end|>"],
    "mine/none": ["jumps over the lazy dog<|im_end|>"],
    "mine/turns": ["blue<|im_end|>", "a black background<|im_end|>"],
    "mine/later": ["yes<|im_end|>", "nine<|im_end|>"],
    "mine/system": ["no<|im_end|>"],
}
# Pictures of 56 x 56, 56 x 112 and 84 x 56 pixels are 2x2, 2x4 and 3x2 tokens of 28 x 28.
IMAGE_TOKENS = {"mine/one": 4, "mine/two": 14, "mine/none": 0, "mine/turns": 6, "mine/later": 8, "mine/system": 4}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sample]:
    return {sample.id: sample for sample in read_llava(write_llava(tmp_path_factory.mktemp("llava")))}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return encoding()[0]


def conversation(*parts: str | Image, answer: str = "red", sample_id: str = "mine/7") -> Sample:
    messages = (Message("user", parts), Message("assistant", (answer,)))
    return Sample(sample_id, messages, "data.json:12")


def officially(
    sample: Sample, messages: tuple[Message, ...] | None = None, generation: bool = False
) -> dict[str, object]:
    """What transformers' own path makes of a sample: its chat template, then its processor."""
    processor = tiny_processor()
    spoken = [
        {
            "role": m.role,
            "content": [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in m.parts],
        }
        for m in (messages or sample.messages)
    ]
    text = processor.apply_chat_template(spoken, tokenize=False, add_generation_prompt=generation)
    pictures = [PIL.Image.open(p.path) for m in (messages or sample.messages) for p in m.parts if isinstance(p, Image)]
    return dict(processor(text=[text], images=pictures or None, return_tensors="pt"))


def supervised_runs(encoded: Encoded) -> list[str]:
    """The supervised tokens, decoded, one text for each unbroken run."""
    pairs = zip(encoded.supervised.tolist(), encoded.input_ids.tolist(), strict=True)
    decode = tiny_processor().tokenizer.decode
    return [decode([i for _, i in run]) for asked, run in itertools.groupby(pairs, lambda pair: pair[0]) if asked]


@pytest.mark.parametrize("sample_id", SUPERVISED)
def test_the_model_gets_exactly_what_the_official_processor_gives(
    samples: dict[str, Sample], encoder: Encoder, sample_id: str
) -> None:
    official = officially(samples[sample_id])
    encoded = encoder.encode(samples[sample_id])
    assert encoded.input_ids.dtype == torch.int64
    inputs = model_inputs(encoding()[1]([encoded]))
    assert inputs.keys() == official.keys()
    for name, tensor in official.items():
        assert torch.equal(inputs[name], tensor), name


@pytest.mark.parametrize("sample_id", SUPERVISED)
def test_answers_and_their_ends_are_supervised_and_nothing_else(
    samples: dict[str, Sample], encoder: Encoder, sample_id: str
) -> None:
    encoded = encoder.encode(samples[sample_id])
    assert supervised_runs(encoded) == SUPERVISED[sample_id]
    assert encoded.num_supervised == int(encoded.supervised.sum())


@pytest.mark.parametrize("sample_id", SUPERVISED)
def test_counts_are_exact_and_need_no_pixels(samples: dict[str, Sample], encoder: Encoder, sample_id: str) -> None:
    encoded = encoder.encode(samples[sample_id])
    assert encoded.num_vision_tokens == IMAGE_TOKENS[sample_id]
    assert int((encoded.input_ids == tiny_processor().image_token_id).sum()) == IMAGE_TOKENS[sample_id]
    counted = encoder.count(samples[sample_id])
    assert counted.num_tokens == encoded.num_tokens == len(encoded.input_ids)
    assert counted.num_supervised == encoded.num_supervised
    assert counted.num_vision_tokens == encoded.num_vision_tokens


@pytest.mark.parametrize("sample_id", SUPERVISED)
def test_the_prompt_is_the_beginning_up_to_the_last_answer(
    samples: dict[str, Sample], encoder: Encoder, sample_id: str
) -> None:
    whole, prompt = encoder.encode(samples[sample_id]), encoder.encode_prompt(samples[sample_id])
    n = prompt.num_tokens
    assert torch.equal(prompt.input_ids, whole.input_ids[:n])
    assert whole.supervised[n:].tolist() == [True] * (whole.num_tokens - n - 1) + [False]
    assert not prompt.supervised.any() and prompt.num_supervised == 0
    assert (prompt.id, prompt.num_vision_tokens) == (whole.id, whole.num_vision_tokens)
    for mine, others in zip(prompt.media, whole.media, strict=True):
        assert all(torch.equal(mine[name], others[name]) for name in others)


@pytest.mark.parametrize("answered", [True, False])
def test_a_conversation_that_ends_with_a_question_is_prompted_whole(
    samples: dict[str, Sample], encoder: Encoder, answered: bool
) -> None:
    # A picture in the open question belongs to the prompt, whether or not an answer came before.
    messages = samples["mine/later"].messages[0 if answered else 2 : 3]
    prompt = encoder.encode_prompt(Sample("mine/open", messages))
    official = officially(samples["mine/later"], messages, generation=True)
    assert torch.equal(prompt.input_ids, official["input_ids"][0])
    assert prompt.num_vision_tokens == 8 and len(prompt.media) == 1


def test_the_first_token_is_never_counted_as_supervised() -> None:
    encoded = Encoded("x", torch.tensor([5, 6, 7]), torch.tensor([True, False, True]), [], 0)
    assert encoded.num_supervised == 1


def test_a_sample_of_exactly_the_limit_is_taken(samples: dict[str, Sample], encoder: Encoder) -> None:
    sample = samples["mine/two"]
    exactly = encoder.count(sample).num_tokens
    assert encoding(exactly)[0].encode(sample).num_tokens == exactly
    with pytest.raises(DataError, match=rf"{exactly} tokens, 14 of them vision tokens, exceed .*={exactly - 1}"):
        encoding(exactly - 1)[0].encode(sample)


def cut_short(path: Path) -> Path:
    """A PNG with a good header and half of its pixels."""
    content = save_noise(path, 280, 140).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


@pytest.mark.parametrize("method", ["encode", "count", "encode_prompt"])
def test_a_sample_too_long_is_refused_from_its_header(tmp_path: Path, method: str) -> None:
    sample = conversation(Image(cut_short(tmp_path / "cut.png")), "What?")
    message = (
        r"^mine/7 \(data\.json:12\): \d+ tokens, 50 of them vision tokens, exceed batching\.max_tokens=40; "
        r"raise it, or lower model\.image\.max_pixels, model\.video\.max_pixels or model\.video\.fps "
        r"\(nothing is cut\)$"
    )
    with pytest.raises(DataError, match=message):
        getattr(encoding(40)[0], method)(sample)


def test_a_damaged_picture_is_named_with_its_sample(tmp_path: Path) -> None:
    path = cut_short(tmp_path / "cut.png")
    sample = conversation(Image(path), "What?")
    encoder = encoding(1000)[0]
    assert encoder.count(sample).num_tokens > 50
    with pytest.raises(DataError, match=rf"^mine/7 \(data\.json:12\): {path} cannot be decoded: ") as raised:
        encoder.encode(sample)
    assert raised.value.sample_id == "mine/7"  # type: ignore[attr-defined]


def test_a_control_token_is_named_with_its_sample(encoder: Encoder) -> None:
    with pytest.raises(DataError, match=r"^mine/7 \(data\.json:12\): .*<\|image_pad\|>"):
        encoder.encode(conversation("What is <|image_pad|>?"))


def test_placeholders_unlike_the_pictures_are_refused(samples: dict[str, Sample]) -> None:
    processor = tiny_processor()
    own = Encoder(encoding()[0].family, processor)
    own.chat = _WithoutPlaceholders(own.chat)  # type: ignore[assignment]
    with pytest.raises(DataError, match=r"^mine/one .*wrote 0 placeholders for 1 pictures and videos"):
        own.encode(samples["mine/one"])


class _WithoutPlaceholders:
    """A chat template that forgets pictures."""

    def __init__(self, chat: object) -> None:
        self.chat = chat

    def render(self, sample: Sample) -> object:
        return self.chat.render(conversation("What?"))  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [(28, 28), (100, 130), (500, 500), (30, 900)])
def test_a_pictures_tokens_stay_together(tmp_path: Path, encoder: Encoder, size: tuple[int, int]) -> None:
    encoded = encoder.encode(conversation("This", Image(save_noise(tmp_path / "a.png", *size)), "or that?"))
    kinds = [(i == tiny_processor().image_token_id) for i in encoded.input_ids.tolist()]
    assert [kind for kind, _ in itertools.groupby(kinds)] == [False, True, False]
    assert sum(kinds) == encoded.num_vision_tokens == len(encoded.media[0]["patches"]) // 4


def test_a_picture_turned_by_its_camera_is_read_upright(tmp_path: Path, encoder: Encoder) -> None:
    # 84 high and 280 wide in the file, to be turned by 90 degrees.
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    noise(84, 280).save(path, exif=exif, quality=95)
    encoded = encoder.encode(conversation(Image(path), "What?"))
    assert encoded.media[0]["grid"].tolist() == [1, 20, 6]
    assert encoded.num_vision_tokens == 30
    upright = PIL.ImageOps.exif_transpose(PIL.Image.open(path))
    official = tiny_processor().image_processor(images=[upright], return_tensors="pt")
    inputs = model_inputs(encoding()[1]([encoded]))
    assert torch.equal(inputs["pixel_values"], official["pixel_values"])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_any_kind_of_picture_becomes_rgb(tmp_path: Path, encoder: Encoder, mode: str) -> None:
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    noise(56, 56).convert(mode).save(path)
    encoded = encoder.encode(conversation(Image(path), "What?"))
    assert encoded.media[0]["patches"].shape == (16, 3, 14 * 14)
    assert encoded.media[0]["patches"].dtype == torch.uint8


def test_an_encoder_travels_to_another_process(samples: dict[str, Sample], encoder: Encoder) -> None:
    copy: Encoder = pickle.loads(pickle.dumps(encoder))
    for sample in samples.values():
        mine, theirs = encoder.encode(sample), copy.encode(sample)
        assert torch.equal(mine.input_ids, theirs.input_ids)
        assert torch.equal(mine.supervised, theirs.supervised)
        for one, other in zip(mine.media, theirs.media, strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_encoder_holds_no_weights(encoder: Encoder) -> None:
    assert len(pickle.dumps(encoder)) < 200_000


def test_the_probes_batch_holds_a_picture_and_an_answer() -> None:
    encoder, collator = encoding()
    batch = collator([probe_sample(encoder)])
    assert batch.inputs["image_grid_thw"].tolist() == [[1, 8, 8]]
    asked = batch.labels[batch.labels != -100]
    assert tiny_processor().tokenizer.decode(asked) == "Noise.<|im_end|>"
    again = collator([probe_sample(encoder)])
    assert all(torch.equal(again.inputs[name], tensor) for name, tensor in batch.inputs.items())
