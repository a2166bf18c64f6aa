import hashlib
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2TokenizerFast,
)

from tests.support import CPU, tiny, tiny_processor
from vlmft.models import TinyQwen25VL
from vlmft.models.tiny.qwen25vl import build

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
IMAGE = {"type": "image"}


def say(role: str, *content: str | dict[str, str]) -> dict[str, object]:
    return {"role": role, "content": [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]}


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_two_builds_are_equal_to_the_byte(tmp_path: Path) -> None:
    torch.manual_seed(1)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    build(tmp_path / "first")
    assert torch.equal(torch.rand(1), drawn), "the caller's random numbers must not be touched"
    build(tmp_path / "second")
    assert hashes(tmp_path / "first") == hashes(tmp_path / "second")
    assert hashes(tmp_path / "first") == hashes(tiny().folder())


def test_the_folder_is_made_once_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tiny().folder()
    assert folder.parent == tmp_path / "vlmft" / "models" and folder.name.startswith("tiny_qwen25vl-")
    (folder / "mark").touch()
    assert (tiny().folder() / "mark").exists()


def test_transformers_reads_it_as_the_real_classes() -> None:
    folder = tiny().folder()
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    assert type(model) is Qwen2_5_VLForConditionalGeneration
    assert type(processor) is Qwen2_5_VLProcessor
    assert isinstance(processor.tokenizer, Qwen2TokenizerFast)
    assert all(torch.equal(p, dict(model.named_parameters())[n]) for n, p in tiny().load_model(CPU).named_parameters())
    assert {p.name for p in folder.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_embedding_and_head_are_one_tensor() -> None:
    model = tiny().load_model(CPU)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert model.config.text_config.vocab_size == len(tiny_processor().tokenizer)


def test_generation_ends_with_the_turn() -> None:
    token = tiny_processor().tokenizer.convert_tokens_to_ids
    config = GenerationConfig.from_pretrained(tiny().folder())
    assert config.eos_token_id == [token("<|im_end|>"), token("<|endoftext|>")]
    assert config.pad_token_id == token("<|endoftext|>")


def test_another_path_is_not_passed_over() -> None:
    spec = TinyQwen25VL(**(dict(tiny()) | {"path": str(Path(__file__).parent)}))
    assert spec.folder() == Path(__file__).parent


@pytest.mark.parametrize(
    ("conversation", "generation", "text"),
    [
        (
            [say("user", "Hi"), say("assistant", "red")],
            False,
            f"{SYSTEM}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n",
        ),
        (
            [{"role": "user", "content": "Hi"}],
            True,
            f"{SYSTEM}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            [say("system", "Be brief."), say("user", "Hi"), say("assistant", "red")],
            False,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\nred<|im_end|>\n",
        ),
        (
            [say("user", IMAGE, "\nWhat?")],
            True,
            f"{SYSTEM}<|im_start|>user\n{PICTURE}\nWhat?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            [say("user", "This", IMAGE, "or", IMAGE, "?")],
            False,
            f"{SYSTEM}<|im_start|>user\nThis{PICTURE}or{PICTURE}?<|im_end|>\n",
        ),
        (
            [say("user", "Hi"), say("assistant", "Hello"), say("user", IMAGE, "?"), say("assistant", "red")],
            False,
            f"{SYSTEM}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
            f"<|im_start|>user\n{PICTURE}?<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n",
        ),
        (
            [say("user", {"type": "video"}, "?")],
            False,
            f"{SYSTEM}<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>?<|im_end|>\n",
        ),
    ],
    ids=["text", "generation prompt", "system", "one image", "two images", "later image", "video"],
)
def test_the_chat_template_writes_what_qwen_s_own_does(
    conversation: list[dict[str, object]], generation: bool, text: str
) -> None:
    written = tiny_processor().apply_chat_template(conversation, tokenize=False, add_generation_prompt=generation)
    assert written == text


@pytest.mark.parametrize(
    "text", ["red", "Grüße, 日本語 🙂\n\n\ttabs  and   spaces ", "<not a token>", "a\r\nb", "0123"]
)
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = tiny_processor().tokenizer
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_control_tokens_are_one_token_each() -> None:
    tokenizer = tiny_processor().tokenizer
    for token in ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|endoftext|>"):
        assert len(tokenizer(token)["input_ids"]) == 1, token


def test_answers_of_the_generated_data_are_short() -> None:
    tokenizer = tiny_processor().tokenizer
    words = ["red", "green", "blue", "yellow", "purple", "orange", "black", "white", "one", "seven"]
    assert max(len(tokenizer(word)["input_ids"]) for word in words) <= 3
