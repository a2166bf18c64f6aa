"""Llama 3.2 Vision: a picture in up to four tiles, which the LLM looks at through cross-attention layers of its own.

The text holds one token for a picture. Which tiles each token sees follows from where the pictures stand.
B = samples, M = pictures of each, S = tokens, T = tiles that a picture may have (4).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vlmft.config.media import PixelBudget
from vlmft.models.pictures import Pictures
from vlmft.models.pixels import image_pixels, normalised, refuse_budget
from vlmft.models.spec import Media, MediumText, Pixels
from vlmft.models.tiny import TinyCheckpoint

if TYPE_CHECKING:
    from torch import Tensor


class Mllama(Pictures):
    """A checkpoint of transformers' `MllamaForConditionalGeneration`.

    A run cannot choose the number of tiles: the tower has an embedding for each place and each shape of the grid.
    """

    component_paths: ClassVar = Pictures.component_paths | {"vision_tower": ("model.vision_model",)}
    block_paths: ClassVar = {
        "vision_tower": ("model.vision_model.transformer.layers", "model.vision_model.global_transformer.layers"),
        "llm": "model.language_model.layers",
    }
    coordinate_style: ClassVar = "unit"
    masks: ClassVar = "which token sees which tile"
    unpacked_because: ClassVar = "its cross attention tells samples apart by rows"

    def set_budgets(self, processor: Any) -> None:
        """See `ModelSpec`; no budget is taken."""
        self.seen_image(processor, (1, 1), self.image)

    def seen_image(
        self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True
    ) -> tuple[int, int]:
        """See `ModelSpec`: without the black that fills the last tiles, to the right and below."""
        from transformers.models.mllama.image_processing_mllama import (
            get_image_size_fit_to_canvas,
            get_optimal_tiled_canvas,
        )

        images = processor.image_processor
        tile = images.size["height"]
        refuse_budget("image", budget, (tile, tile))
        canvas = get_optimal_tiled_canvas(*size, images.max_image_tiles, tile)
        height, width = get_image_size_fit_to_canvas(*size, *canvas, tile)
        return int(height), int(width)

    def image_text(self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True) -> MediumText:
        """See `ModelSpec`: one token, whatever the picture's size."""
        self.seen_image(processor, size, budget)
        return MediumText(processor.image_token, (1,))

    def encode_image(self, processor: Any, picture: "Pixels", budget: PixelBudget, alone: bool = True) -> Media:
        """See `ModelSpec`. `pixels` is uint8 [tiles, C, H, W], `shape` [] the number of the grid's shape."""
        found = image_pixels(processor, picture)
        tiles = int(found["num_tiles"][0][0])
        return {
            "pixels": found["pixel_values"][0, 0, :tiles].byte(),  # whole numbers, which padding made floats of
            "shape": found["aspect_ratio_ids"][0, 0],
        }

    def batch_kind(self, media: Sequence[object]) -> int:
        """See `ModelSpec`: as many pictures.

        A token before the first picture sees the mean over all picture slots of the batch's widest sample, filled or
        not (transformers' modeling_mllama.py, line 700, adds what rows without a picture attend to; issue 39379).
        """
        return len(media)

    def collate(self, processor: Any, input_ids: "Tensor", media: Sequence[Media]) -> dict[str, "Tensor"]:
        """See `Pictures`. `aspect_ratio_mask` [B, M, T] marks each picture's tiles, `cross_attention_mask` [B, S, M, T]
        those that a token sees.
        """
        import torch
        from transformers.models.mllama.processing_mllama import (
            convert_sparse_cross_attention_mask_to_dense,
            get_cross_attention_token_mask,
        )

        if not media:
            return {}
        rows = len(input_ids)
        tiles = torch.tensor([len(item["pixels"]) for item in media])
        most = processor.image_processor.max_image_tiles
        mask = convert_sparse_cross_attention_mask_to_dense(
            [get_cross_attention_token_mask(ids, processor.image_token_id) for ids in input_ids.tolist()],
            num_tiles=tiles.view(rows, -1).tolist(),
            max_num_tiles=most,
            length=input_ids.shape[1],
        )
        return super().collate(processor, input_ids, media) | {
            "aspect_ratio_ids": torch.stack([item["shape"] for item in media]).view(rows, -1),
            "aspect_ratio_mask": (torch.arange(most) < tiles[:, None]).long().view(rows, -1, most),
            "cross_attention_mask": torch.from_numpy(mask),
        }

    def model_inputs(self, processor: Any, inputs: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
        """See `ModelSpec`. `pixel_values` is float32 [B, M, T, C, H, W], filled up with zeros."""
        inputs = dict(inputs)
        if "pixels" in inputs:
            pixels = normalised(processor.image_processor, inputs.pop("pixels"))
            places = inputs["aspect_ratio_mask"].bool()
            padded = pixels.new_zeros(*places.shape, *pixels.shape[1:])
            padded[places] = pixels
            inputs["pixel_values"] = padded
        return inputs


class TinyMllama(TinyCheckpoint, Mllama):
    """A Llama 3.2 Vision of the real classes with random weights, small enough to learn on a CPU."""
