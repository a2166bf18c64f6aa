"""What Mistral 3 and Pixtral make of a budget, and of the tokenizers that Mistral's older folders have."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor

from tests.models.families import FAMILIES, Family, asked, collator_of, encoder_of, picture, processor_of
from tests.support import compose, literally
from vlmft.config.media import PixelBudget
from vlmft.errors import ConfigError, DataError

both = pytest.mark.parametrize("name", ["mistral3", "pixtral"])


def family(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


@pytest.mark.parametrize(
    ("name", "max_pixels", "seen"),
    [
        ("mistral3", None, (280, 168)),
        ("mistral3", 100 * 100, (84, 56)),
        ("mistral3", 28 * 28, (28, 28)),
        ("mistral3", 1000 * 1000, (308, 196)),
        ("pixtral", None, (280, 168)),
        ("pixtral", 100 * 100, (98, 70)),
        ("pixtral", 14 * 14, (14, 14)),
        ("pixtral", 1000 * 1000, (308, 182)),
    ],
)
def test_a_side_is_bounded_by_the_budgets_square_root_and_never_enlarged(
    name: str, max_pixels: int | None, seen: tuple[int, int]
) -> None:
    spec, processor = family(name).spec, processor_of(name)
    assert spec.seen_image(processor, (300, 180), PixelBudget(max_pixels=max_pixels)) == seen
    assert max_pixels is None or seen[0] * seen[1] <= max_pixels


def test_the_processor_is_saved_with_the_bound() -> None:
    spec = compose("model=tiny_mistral3", "model.image.max_pixels=10000").model
    processor = spec.load_processor()
    assert processor.image_processor.size["longest_edge"] == 84
    assert spec.seen_image(processor, (300, 180), PixelBudget()) == (84, 56)


@both
@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"max_pixels": 100}, r"max_pixels=100 is less than one block of (28 x 28|14 x 14) pixels; raise it"),
        ({"min_pixels": 3000}, r"enlarges nothing; leave min_pixels, height and width null"),
        ({"height": 56, "width": 56}, r"enlarges nothing; leave min_pixels, height and width null"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(name: str, budget: dict[str, int], message: str) -> None:
    spec = family(name).spec.model_copy(update={"image": PixelBudget(**budget)})
    with pytest.raises(ConfigError, match=message):
        spec.set_budgets(processor_of(name))


def test_a_picture_of_which_nothing_would_be_left_is_refused(tmp_path: Path) -> None:
    mistral = family("mistral3")
    for height, width in ((3, 600), (1, 280), (280, 3)):  # in which a shape could be read either way
        assert encoder_of(mistral).count(asked(picture(tmp_path, height, width), "What?")).num_vision_tokens == 10
    with pytest.raises(DataError, match=literally("a picture of 600 x 1 pixels cannot be resized")):
        encoder_of(mistral).count(asked(picture(tmp_path, 1, 600), "What?"))


def test_what_fills_a_picture_up_is_nothing_to_the_tower(tmp_path: Path) -> None:
    mistral = family("mistral3")
    samples = [asked(picture(tmp_path, 56, 84), "?"), asked(picture(tmp_path, 28, 140), "?")]
    batch = collator_of(mistral)([encoder_of(mistral).encode(sample) for sample in samples])
    inputs = mistral.spec.model_inputs(processor_of("mistral3"), dict(batch.inputs))
    assert inputs["image_sizes"].tolist() == [[56, 84], [28, 140]]
    assert inputs["pixel_values"].shape == (2, 3, 56, 140)
    filled = torch.ones(2, 56, 140, dtype=torch.bool)
    filled[0, :, :84], filled[1, :28] = False, False
    assert not inputs["pixel_values"][filled[:, None].expand(-1, 3, -1, -1)].any()
    assert inputs["pixel_values"][~filled[:, None].expand(-1, 3, -1, -1)].abs().gt(1e-3).float().mean() > 0.98


def say(role: str, *content: str) -> dict[str, Any]:
    parts = [{"type": "image"} if part == "IMAGE" else {"type": "text", "text": part} for part in content]
    return {"role": role, "content": parts}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "mistral3",
            "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]Like [IMG][IMG]?[/INST]yes</s>[INST]Why?[/INST]",
        ),
        ("pixtral", "<s>[INST]Like [IMG][IMG]?[/INST]yes</s>[INST]Be brief.\n\nWhy?[/INST]"),
    ],
)
def test_the_chat_template_writes_what_mistrals_own_does(name: str, text: str) -> None:
    turns = [
        say("system", "Be brief."),
        say("user", "Like ", "IMAGE", "IMAGE", "?"),
        say("assistant", "yes"),
        say("user", "Why?"),
    ]
    assert processor_of(name).apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == text


def test_words_of_an_old_folder_are_split_as_mistral_split_them(tmp_path: Path) -> None:
    """Only folders with a vocabulary of Mistral's size, and written by a release before 5, are known as such."""
    folder = tmp_path / "old"
    shutil.copytree(compose("model=tiny_mistral3").model.folder(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_version": "4.50.0"}))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    known = len(tokenizer["model"]["vocab"]) + len(tokenizer["added_tokens"])
    tokenizer["model"]["vocab"] |= {f"unused {number}": number for number in range(known, 100_100)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))

    def words(processor: Any) -> list[str]:
        split = processor.tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("aWord")
        return [word for word, _ in split]

    assert words(AutoProcessor.from_pretrained(folder)) == ["aWord"]
    processor = compose("model=tiny_mistral3", f"model.path={folder}").model.load_processor()
    assert words(processor) == ["a", "Word"]
    processor.save_pretrained(tmp_path / "saved")
    assert words(AutoProcessor.from_pretrained(tmp_path / "saved")) == ["a", "Word"]
