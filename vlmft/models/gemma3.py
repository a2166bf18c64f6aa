"""Gemma 3: SigLIP's tower at one size, pooled to a fixed number of tokens; an LLM of local and global layers.

A picture's tokens see each other in both directions: the model is told which they are.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vlmft.config.media import PixelBudget
from vlmft.models.pictures import FixedSize
from vlmft.models.spec import Media, MediaKind, MediumText
from vlmft.models.tiny import TinyCheckpoint

if TYPE_CHECKING:
    from torch import Tensor


class Gemma3(FixedSize):
    """A checkpoint of transformers' `Gemma3ForConditionalGeneration`; pan and scan stays off, as its own default."""

    coordinate_style: ClassVar = "thousand"
    masks: ClassVar = "that a picture's tokens see each other"
    unpacked_because: ClassVar = "its pictures' tokens see each other by masks that know of one sample a row"

    def placeholders(self, processor: Any) -> dict[MediaKind, str]:
        """See `ModelSpec`; no videos. The template writes the mark that begins a picture."""
        return {"image": processor.boi_token}

    def feature_tokens(self, processor: Any) -> frozenset[int]:
        """See `ModelSpec`."""
        return frozenset((processor.tokenizer.image_token_id,))

    def image_text(self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True) -> MediumText:
        """See `ModelSpec`: a fixed number of tokens between two marks, set off by blank lines."""
        self.seen_image(processor, size, budget)
        tokenizer = processor.tokenizer
        text = f"\n\n{tokenizer.boi_token}{tokenizer.image_token}{tokenizer.eoi_token}\n\n"
        return MediumText(text, (processor.image_seq_length,))

    def collate(self, processor: Any, input_ids: "Tensor", media: Sequence[Media]) -> dict[str, "Tensor"]:
        """See `Pictures`. `token_type_ids` [B, S] marks pictures' tokens with 1."""
        is_picture = input_ids == processor.tokenizer.image_token_id
        return super().collate(processor, input_ids, media) | {"token_type_ids": is_picture.long()}


class TinyGemma3(TinyCheckpoint, Gemma3):
    """A Gemma 3 of the real classes with random weights, small enough to learn on a CPU."""
