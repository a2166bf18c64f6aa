"""What a vLLM server would make of a picture that is sent as the tower sees it: the official processor leaves it so."""

import numpy as np
import PIL.Image
import pytest
import torch

from tests.support import compose, noise
from vlmft.config.media import PixelBudget
from vlmft.models import ModelSpec


def all_specs(base: type[ModelSpec]) -> set[type[ModelSpec]]:
    return {found for kind in base.__subclasses__() for found in {kind} | all_specs(kind)}


@pytest.mark.parametrize("name", ["tiny_qwen2vl", "tiny_qwen25vl", "tiny_qwen3vl", "tiny_llava15"])
def test_a_picture_seen_twice_is_the_picture_seen_once(name: str) -> None:
    family = compose(f"model={name}").model
    processor = family.load_processor()
    assert family.unserved_because is None
    for number, size in enumerate([(56, 56), (150, 97), (61, 333)]):
        picture = np.array(noise(*size, number))
        media = family.encode_image(processor, picture, PixelBudget())
        written = family.image_text(processor, size, PixelBudget())
        assert len(written.runs) == 1  # one token stands for it, until vLLM repeats it
        (shown,) = family.shown(processor, media)
        ids = torch.full((1, written.num_features), next(iter(family.feature_tokens(processor))))
        ours = family.model_inputs(processor, family.collate(processor, ids, [media]))
        theirs = processor.image_processor(images=[PIL.Image.fromarray(shown)], return_tensors="pt")
        assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
        if "image_grid_thw" in theirs:
            assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])


def test_no_other_family_says_that_a_server_can_answer_for_it() -> None:
    served = {kind.__name__ for kind in all_specs(ModelSpec) if kind.unserved_because is None}
    assert {name.removeprefix("Tiny") for name in served} == {"Qwen2VL", "Qwen25VL", "Qwen3VL", "Qwen3VLMoe", "Llava15"}
