"""LLaVA-1.5: CLIP's tower, read before its last block, two linear layers as projector, a Llama LLM."""

from typing import Any, ClassVar

from vlmft.config.media import PixelBudget
from vlmft.models.pictures import FixedSize
from vlmft.models.spec import MediumText
from vlmft.models.tiny import TinyCheckpoint


class Llava15(FixedSize):
    """A checkpoint of transformers' `LlavaForConditionalGeneration` with a CLIP tower.

    A picture is resized to the tower's size by its shorter side, and what is left over of the longer one is cut off.
    """

    coordinate_style: ClassVar = "unit"
    unpacked_because: ClassVar = None
    unserved_because: ClassVar[str | None] = None

    def image_text(self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True) -> MediumText:
        """See `ModelSpec`: one token for each patch."""
        height, width = self.seen_image(processor, size, budget)
        patches = (height // processor.patch_size) * (width // processor.patch_size)
        dropped = processor.vision_feature_select_strategy == "default"
        return MediumText(processor.image_token, (patches + processor.num_additional_image_tokens - dropped,))

    def _size(self, processor: Any) -> tuple[int, int]:
        crop = processor.image_processor.crop_size
        return crop["height"], crop["width"]


class TinyLlava15(TinyCheckpoint, Llava15):
    """A LLaVA-1.5 of the real classes with random weights, small enough to learn on a CPU."""
