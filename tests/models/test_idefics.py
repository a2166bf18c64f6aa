"""What Idefics3 and SmolVLM make of a budget."""

from pathlib import Path

import pytest
import torch

from tests.models.families import asked, official, picture
from tests.support import compose
from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoder
from vlmft.errors import ConfigError

both = pytest.mark.parametrize("name", ["idefics3", "smolvlm"])


@both
@pytest.mark.parametrize(
    ("max_pixels", "seen"), [(56 * 56, (56, 56)), (200 * 200, (168, 112)), (336 * 336, (336, 224))]
)
def test_the_longer_side_is_as_many_tiles_as_the_budget_holds(
    name: str, max_pixels: int, seen: tuple[int, int]
) -> None:
    spec = compose(f"model=tiny_{name}", f"model.image.max_pixels={max_pixels}").model
    processor = spec.load_processor()
    assert spec.seen_image(processor, (300, 180), spec.image) == seen
    assert processor.image_processor.size["longest_edge"] == max(seen)


@both
@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("max_pixels=3000", r"max_pixels=3000 is less than one tile of 56 x 56 pixels; raise it"),
        ("max_pixels=160000", r"the longer side 7 tiles of 56 pixels, and <row_7_col_7>, which .* lower it"),
        ("min_pixels=3000", r"tiles of 56 x 56 pixels, .* leave min_pixels, height and width null"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(name: str, key: str, message: str) -> None:
    spec = compose(f"model=tiny_{name}", f"model.image.{key}").model
    with pytest.raises(ConfigError, match=message):
        spec.load_processor()


@both
def test_a_checkpoint_that_cuts_no_tiles_sees_the_whole_alone(name: str, tmp_path: Path) -> None:
    spec = compose(f"model=tiny_{name}").model
    processor = spec.load_processor()
    processor.image_processor.do_image_splitting = False
    sample = asked(picture(tmp_path, 300, 180), "What colour is the shape?")
    encoded = Encoder(spec, processor).encode_prompt(sample)
    found = spec.model_inputs(processor, Collator(spec, processor)([encoded], padding_side="left").inputs)
    expected = official(processor, sample)
    assert encoded.num_vision_tokens == 4
    assert found["input_ids"].tolist() == expected["input_ids"].tolist()
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
    with pytest.raises(ConfigError, match=r"max_pixels=9000: this checkpoint sees every picture at 56 x 56 pixels"):
        spec.seen_image(processor, (300, 180), spec.image.model_copy(update={"max_pixels": 9000}))
