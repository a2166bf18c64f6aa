"""LLaVA-1.5: CLIP's tower, read before its last block, two linear layers as projector, a Llama LLM."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vlmft.config.media import PixelBudget
from vlmft.models.pixels import as_pictures, image_pixels, normalised, refuse_budget
from vlmft.models.spec import Media, MediaKind, MediumText, ModelSpec, Pixels
from vlmft.models.tiny import TinyCheckpoint

if TYPE_CHECKING:
    from torch import Tensor


class Llava15(ModelSpec):
    """A checkpoint of transformers' `LlavaForConditionalGeneration` with a CLIP tower.

    A picture is resized to the tower's size by its shorter side, and what is left over of the longer one is cut off.
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
    coordinate_style: ClassVar = "unit"

    def set_budgets(self, processor: Any) -> None:
        """See `ModelSpec`; every picture has the tower's size."""
        self.seen_image(processor, (1, 1), self.image)

    def placeholders(self, processor: Any) -> dict[MediaKind, str]:
        """See `ModelSpec`; no videos."""
        return {"image": processor.image_token}

    def feature_tokens(self, processor: Any) -> frozenset[int]:
        """See `ModelSpec`."""
        return frozenset((processor.image_token_id,))

    def seen_image(
        self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True
    ) -> tuple[int, int]:
        """See `ModelSpec`."""
        crop = processor.image_processor.crop_size
        refuse_budget("image", budget, (crop["height"], crop["width"]))
        return crop["height"], crop["width"]

    def image_text(self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True) -> MediumText:
        """See `ModelSpec`: one token for each patch."""
        height, width = self.seen_image(processor, size, budget)
        patches = (height // processor.patch_size) * (width // processor.patch_size)
        dropped = processor.vision_feature_select_strategy == "default"
        return MediumText(processor.image_token, (patches + processor.num_additional_image_tokens - dropped,))

    def encode_image(self, processor: Any, picture: "Pixels", budget: PixelBudget, alone: bool = True) -> Media:
        """See `ModelSpec`. `pixels` is uint8 [1, C, H, W]."""
        return {"pixels": image_pixels(processor, picture)["pixel_values"]}

    def shown(self, processor: Any, media: Media) -> Pixels:
        """See `ModelSpec`."""
        return as_pictures(media["pixels"])

    def collate(self, processor: Any, input_ids: "Tensor", media: Sequence[Media]) -> dict[str, "Tensor"]:
        """See `ModelSpec`."""
        import torch

        return {"pixels": torch.cat([item["pixels"] for item in media])} if media else {}

    def model_inputs(self, processor: Any, inputs: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
        """See `ModelSpec`. `pixel_values` is float32 [pictures, C, H, W]."""
        inputs = dict(inputs)
        if "pixels" in inputs:
            inputs["pixel_values"] = normalised(processor.image_processor, inputs.pop("pixels"))
        return inputs


class TinyLlava15(TinyCheckpoint, Llava15):
    """A LLaVA-1.5 of the real classes with random weights, small enough to learn on a CPU."""
