"""What most families do alike: LLaVA's three modules, and pictures as stacks of equal tiles."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vlmft.config.media import PixelBudget
from vlmft.models.pixels import as_pictures, image_pixels, normalised, refuse_budget
from vlmft.models.spec import Media, MediaKind, ModelSpec, Pixels

if TYPE_CHECKING:
    from torch import Tensor


class Pictures(ModelSpec, abstract=True):
    """A family that takes pictures alone; a medium's `pixels` are uint8 [tiles, C, H, W], of one size for all.

    A subclass names what it has elsewhere than LLaVA, and adds the videos where it takes them.
    """

    component_paths: ClassVar = {
        "vision_tower": ("model.vision_tower",),
        "projector": ("model.multi_modal_projector",),
        "llm": ("model.language_model", "lm_head"),
    }
    block_paths: ClassVar = {
        "vision_tower": "model.vision_tower.encoder.layers",
        "llm": "model.language_model.layers",
    }

    def placeholders(self, processor: Any) -> dict[MediaKind, str]:
        """See `ModelSpec`."""
        return {"image": processor.image_token}

    def feature_tokens(self, processor: Any) -> frozenset[int]:
        """See `ModelSpec`."""
        return frozenset((processor.image_token_id,))

    def shown(self, processor: Any, media: Media) -> Pixels:
        """See `ModelSpec`."""
        return as_pictures(media["pixels"])

    def collate(self, processor: Any, input_ids: "Tensor", media: Sequence[Media]) -> dict[str, "Tensor"]:
        """See `ModelSpec`: the tiles of all samples, in reading order."""
        import torch

        return {"pixels": torch.cat([item["pixels"] for item in media])} if media else {}

    def model_inputs(self, processor: Any, inputs: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
        """See `ModelSpec`. `pixel_values` is float32 [tiles, C, H, W]."""
        inputs = dict(inputs)
        if "pixels" in inputs:
            inputs["pixel_values"] = normalised(processor.image_processor, inputs.pop("pixels"))
        return inputs


class FixedSize(Pictures, abstract=True):
    """A family that sees every picture as one tile of the tower's size."""

    def set_budgets(self, processor: Any) -> None:
        """See `ModelSpec`; no budget is taken."""
        self.seen_image(processor, (1, 1), self.image)

    def seen_image(
        self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True
    ) -> tuple[int, int]:
        """See `ModelSpec`."""
        seen = self._size(processor)
        refuse_budget("image", budget, seen)
        return seen

    def encode_image(self, processor: Any, picture: "Pixels", budget: PixelBudget, alone: bool = True) -> Media:
        """See `ModelSpec`. `pixels` is uint8 [1, C, H, W]."""
        return {"pixels": image_pixels(processor, picture)["pixel_values"]}

    def _size(self, processor: Any) -> tuple[int, int]:
        """The tower's (height, width)."""
        size = processor.image_processor.size
        return size["height"], size["width"]
