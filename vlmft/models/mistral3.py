"""Mistral 3 and Pixtral: a tower that takes pictures of any size, their rows marked in the text, and a Mistral LLM.

A block is what one token stands for: M x M patches, which Mistral 3 merges (M = 2) and Pixtral does not (M = 1).
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vlmft.config.media import PixelBudget
from vlmft.errors import ConfigError, DataError
from vlmft.models.pictures import Pictures
from vlmft.models.pixels import image_pixels
from vlmft.models.spec import Media, MediumText, Pixels, read_processor
from vlmft.models.tiny import TinyCheckpoint

if TYPE_CHECKING:
    from torch import Tensor


class Mistral3(Pictures):
    """A checkpoint of transformers' `Mistral3ForConditionalGeneration`; or of LLaVA's class, with Pixtral's tower.

    A picture is shrunk until both sides are within a bound, then made whole blocks; it is never enlarged. A budget's
    `max_pixels` is the square of that bound.
    """

    block_paths: ClassVar = Pictures.block_paths | {"vision_tower": "model.vision_tower.transformer.layers"}
    coordinate_style: ClassVar = "thousand"
    unpacked_because: ClassVar = None

    def load_processor(self) -> Any:
        """See `ModelSpec`. Mistral's folders of before transformers 5 split words in another way than it trained.

        What this one saves splits them as Mistral did, so nobody has to know of it later.
        """
        processor = read_processor(self.folder(), self.trust_remote_code, fix_mistral_regex=True)
        self.set_budgets(processor)
        return processor

    def set_budgets(self, processor: Any) -> None:
        """See `ModelSpec`; the image processor keeps the bound."""
        processor.image_processor.size = {"longest_edge": self._longest(processor, self.image)}

    def seen_image(
        self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True
    ) -> tuple[int, int]:
        """See `ModelSpec`: whole blocks."""
        import numpy as np
        from transformers.image_utils import ChannelDimension
        from transformers.models.pixtral.image_processing_pixtral import get_resize_output_image_size

        picture = np.broadcast_to(np.uint8(0), (*size, 3))  # it asks a picture for its size
        height, width = get_resize_output_image_size(
            picture, self._longest(processor, budget), _block(processor), ChannelDimension.LAST
        )
        if not height or not width:
            raise DataError(
                f"a picture of {size[1]} x {size[0]} pixels cannot be resized: with its longer side within the bound, "
                "nothing is left of the other; crop it"
            )
        return height, width

    def image_text(self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True) -> MediumText:
        """See `ModelSpec`: each row of blocks with a mark at its end, another one at the last row's."""
        height, width = self.seen_image(processor, size, budget)
        rows, columns = height // _block(processor), width // _block(processor)
        row = f"{processor.image_token}{processor.image_break_token}"
        text = f"{row * (rows - 1)}{processor.image_token}{processor.image_end_token}"
        return MediumText(text, (columns,) * rows)

    def encode_image(self, processor: Any, picture: "Pixels", budget: PixelBudget, alone: bool = True) -> Media:
        """See `ModelSpec`. `pixels` is uint8 [1, C, H, W], of the size at which the tower sees it."""
        self.seen_image(processor, picture.shape[:2], budget)
        size = {"longest_edge": self._longest(processor, budget)}
        return {"pixels": image_pixels(processor, picture, size=size, patch_size=_block(processor))["pixel_values"]}

    def collate(self, processor: Any, input_ids: "Tensor", media: Sequence[Media]) -> dict[str, "Tensor"]:
        """See `ModelSpec`. `pixels` is filled up to the largest [pictures, C, H, W]; `image_sizes` [pictures, 2]."""
        import torch
        from torch.nn.functional import pad

        if not media:
            return {}
        pictures = [item["pixels"] for item in media]
        sizes = torch.tensor([picture.shape[2:] for picture in pictures])
        height, width = sizes.amax(dim=0).tolist()
        filled = [pad(picture, (0, width - picture.shape[3], 0, height - picture.shape[2])) for picture in pictures]
        return {"pixels": torch.cat(filled), "image_sizes": sizes}

    def model_inputs(self, processor: Any, inputs: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
        """See `Pictures`; what only fills up is 0, as the official processor fills after it has normalised."""
        import torch

        inputs = super().model_inputs(processor, inputs)
        if "pixel_values" in inputs:
            pixels, sizes = inputs["pixel_values"], inputs["image_sizes"][:, :, None, None, None]
            rows = torch.arange(pixels.shape[2], device=pixels.device)[:, None] < sizes[:, 0]
            columns = torch.arange(pixels.shape[3], device=pixels.device) < sizes[:, 1]
            inputs["pixel_values"] = pixels.where(rows & columns, 0)
        return inputs

    def _longest(self, processor: Any, budget: PixelBudget) -> int:
        """The bound of both sides, in pixels; whole blocks where the budget says it, so that none exceeds it."""
        block = _block(processor)
        if budget.size is not None or budget.min_pixels is not None:
            raise ConfigError(
                "model.image: this checkpoint shrinks what exceeds the square root of max_pixels on a side, and "
                "enlarges nothing; leave min_pixels, height and width null"
            )
        if budget.max_pixels is None:
            return int(processor.image_processor.size["longest_edge"])
        if budget.max_pixels < block * block:
            raise ConfigError(
                f"model.image: max_pixels={budget.max_pixels} is less than one block of {block} x {block} pixels; "
                "raise it"
            )
        return math.isqrt(budget.max_pixels) // block * block


def _block(processor: Any) -> int:
    """A block's side, in pixels."""
    return int(processor.patch_size * processor.spatial_merge_size)


class TinyMistral3(TinyCheckpoint, Mistral3):
    """A Mistral 3 of the real classes with random weights, small enough to learn on a CPU."""
