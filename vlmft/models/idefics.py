"""What Idefics3 and SmolVLM share: a picture in rows of square tiles, then the whole, each marked in the text."""

import math
from typing import TYPE_CHECKING, Any, ClassVar

from vlmft.config.media import PixelBudget
from vlmft.errors import ConfigError
from vlmft.models.pictures import Pictures
from vlmft.models.pixels import image_pixels, refuse_budget
from vlmft.models.spec import Media, MediumText, Pixels

if TYPE_CHECKING:
    from torch import Tensor


class Idefics(Pictures, abstract=True):
    """A checkpoint of one of these classes.

    A budget for pictures bounds the longer side: as many whole tiles as its square root has.
    """

    component_paths: ClassVar = {
        "vision_tower": ("model.vision_model",),
        "projector": ("model.connector",),
        "llm": ("model.text_model", "lm_head"),
    }
    block_paths: ClassVar = {"vision_tower": "model.vision_model.encoder.layers", "llm": "model.text_model.layers"}
    coordinate_style: ClassVar = "thousand"
    unpacked_because: ClassVar = None

    def set_budgets(self, processor: Any) -> None:
        """See `ModelSpec`; the image processor keeps the longest side."""
        processor.image_processor.size = {"longest_edge": self._longest(processor, self.image)}

    def seen_image(
        self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True
    ) -> tuple[int, int]:
        """See `ModelSpec`: whole tiles, the longer side first made as long as the budget says; or one tile alone."""
        tile = _tile(processor)
        longest = self._longest(processor, budget)
        if not processor.image_processor.do_image_splitting:
            return tile, tile
        height, width = _scaled(*size, longest)
        ratio = width / height
        if width >= height:
            width = math.ceil(width / tile) * tile
            height = math.ceil(int(width / ratio) / tile) * tile
        else:
            height = math.ceil(height / tile) * tile
            width = math.ceil(int(height * ratio) / tile) * tile
        return height, width

    def image_text(self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True) -> MediumText:
        """See `ModelSpec`: each tile after its row and column, then the whole; of a single tile the whole alone."""
        tile = _tile(processor)
        height, width = self.seen_image(processor, size, budget, alone)
        rows, columns = height // tile, width // tile
        mark, token, features = self._mark(processor), processor.image_token, processor.image_seq_len
        whole = f"{mark}{self._whole(processor)}{token}{mark}"
        if rows * columns == 1:
            return MediumText(whole, (features,))
        text = "".join(
            "".join(f"{mark}<row_{row}_col_{column}>{token}" for column in range(1, columns + 1)) + "\n"
            for row in range(1, rows + 1)
        )
        return MediumText(f"{text}\n{whole}", (features,) * (rows * columns + 1))

    def encode_image(self, processor: Any, picture: "Pixels", budget: PixelBudget, alone: bool = True) -> Media:
        """See `ModelSpec`. `pixels` is uint8 [tiles, C, H, W], the whole last."""
        size = {"longest_edge": self._longest(processor, budget)}
        return {"pixels": image_pixels(processor, picture, size=size, do_pad=False)["pixel_values"][0]}

    def model_inputs(self, processor: Any, inputs: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
        """See `ModelSpec`. `pixel_values` is float32 [1, tiles, C, H, W]; none of them is padding."""
        import torch

        inputs = super().model_inputs(processor, inputs)
        if "pixel_values" in inputs:
            pixels = inputs["pixel_values"][None]
            mask = torch.ones_like(pixels[:, :, 0], dtype=torch.int64)
            inputs |= {"pixel_values": pixels, "pixel_attention_mask": mask}
        return inputs

    def _mark(self, processor: Any) -> str:
        """What stands before each tile and after the whole."""
        return str(processor.fake_image_token)

    def _whole(self, processor: Any) -> str:
        """What tells the whole from a tile."""
        raise NotImplementedError

    def _longest(self, processor: Any, budget: PixelBudget) -> int:
        """The longer side, in pixels."""
        tile = _tile(processor)
        if not processor.image_processor.do_image_splitting:
            refuse_budget("image", budget, (tile, tile))
        if budget.size is not None or budget.min_pixels is not None:
            raise ConfigError(
                f"model.image: this checkpoint sees pictures in tiles of {tile} x {tile} pixels, the longer side "
                "always as long as max_pixels allows; leave min_pixels, height and width null"
            )
        if budget.max_pixels is None:
            return int(processor.image_processor.size["longest_edge"])
        tiles = math.isqrt(budget.max_pixels) // tile
        if not tiles:
            raise ConfigError(
                f"model.image: max_pixels={budget.max_pixels} is less than one tile of {tile} x {tile} pixels; raise it"
            )
        tokenizer, mark = processor.tokenizer, f"<row_{tiles}_col_{tiles}>"
        if tokenizer.convert_tokens_to_ids(mark) in (None, tokenizer.unk_token_id):
            raise ConfigError(
                f"model.image: max_pixels={budget.max_pixels} makes the longer side {tiles} tiles of {tile} pixels, "
                f"and {mark}, which would stand before the last, is none of the checkpoint's tokens; lower it"
            )
        return tiles * tile


def _tile(processor: Any) -> int:
    return int(processor.image_processor.max_image_size["longest_edge"])


def _scaled(height: int, width: int, longest: int) -> tuple[int, int]:
    """As the official processors resize before they cut tiles: even sides, none above their own limit."""
    from transformers.models.smolvlm.image_processing_smolvlm import (
        MAX_IMAGE_SIZE,
        _resize_output_size_rescale_to_max_len,
        _resize_output_size_scale_below_upper_bound,
    )

    height, width = _resize_output_size_rescale_to_max_len(height, width, max_len=longest)
    height, width = _resize_output_size_scale_below_upper_bound(height, width, max_len=MAX_IMAGE_SIZE)
    return height, width
