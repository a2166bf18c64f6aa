"""Gemma 3: SigLIP's tower at one size, pooled to a fixed number of tokens; an LLM of local and global layers.

A picture's tokens see each other in both directions: the model is told which they are.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vlmft.config.media import PixelBudget
from vlmft.models.pixels import as_pictures, image_pixels, normalised, refuse_budget
from vlmft.models.spec import Media, MediaKind, MediumText, ModelSpec, Pixels
from vlmft.models.tiny import TinyCheckpoint

if TYPE_CHECKING:
    from torch import Tensor


class Gemma3(ModelSpec):
    """A checkpoint of transformers' `Gemma3ForConditionalGeneration`; pan and scan stays off, as its own default."""

    component_paths: ClassVar = {
        "vision_tower": ("model.vision_tower",),
        "projector": ("model.multi_modal_projector",),
        "llm": ("model.language_model", "lm_head"),
    }
    block_paths: ClassVar = {
        "vision_tower": "model.vision_tower.encoder.layers",
        "llm": "model.language_model.layers",
    }
    coordinate_style: ClassVar = "thousand"

    def set_budgets(self, processor: Any) -> None:
        """See `ModelSpec`; every picture has the tower's size."""
        self.seen_image(processor, (1, 1), self.image)

    def placeholders(self, processor: Any) -> dict[MediaKind, str]:
        """See `ModelSpec`; no videos. The template writes the mark that begins a picture."""
        return {"image": processor.boi_token}

    def feature_tokens(self, processor: Any) -> frozenset[int]:
        """See `ModelSpec`."""
        return frozenset((processor.tokenizer.image_token_id,))

    def seen_image(
        self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True
    ) -> tuple[int, int]:
        """See `ModelSpec`."""
        found = processor.image_processor.size
        refuse_budget("image", budget, (found["height"], found["width"]))
        return found["height"], found["width"]

    def image_text(self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True) -> MediumText:
        """See `ModelSpec`: a fixed number of tokens between two marks, set off by blank lines."""
        self.seen_image(processor, size, budget)
        tokenizer = processor.tokenizer
        text = f"\n\n{tokenizer.boi_token}{tokenizer.image_token}{tokenizer.eoi_token}\n\n"
        return MediumText(text, (processor.image_seq_length,))

    def encode_image(self, processor: Any, picture: "Pixels", budget: PixelBudget, alone: bool = True) -> Media:
        """See `ModelSpec`. `pixels` is uint8 [1, C, H, W]."""
        return {"pixels": image_pixels(processor, picture)["pixel_values"]}

    def shown(self, processor: Any, media: Media) -> Pixels:
        """See `ModelSpec`."""
        return as_pictures(media["pixels"])

    def collate(self, processor: Any, input_ids: "Tensor", media: Sequence[Media]) -> dict[str, "Tensor"]:
        """See `ModelSpec`. `token_type_ids` [B, S] marks pictures' tokens with 1."""
        import torch

        inputs = {"token_type_ids": (input_ids == processor.tokenizer.image_token_id).long()}
        return inputs | ({"pixels": torch.cat([item["pixels"] for item in media])} if media else {})

    def model_inputs(self, processor: Any, inputs: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
        """See `ModelSpec`. `pixel_values` is float32 [pictures, C, H, W]."""
        inputs = dict(inputs)
        if "pixels" in inputs:
            inputs["pixel_values"] = normalised(processor.image_processor, inputs.pop("pixels"))
        return inputs


class TinyGemma3(TinyCheckpoint, Gemma3):
    """A Gemma 3 of the real classes with random weights, small enough to learn on a CPU."""
