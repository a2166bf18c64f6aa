"""InternVL3 (the `-hf` checkpoints): pictures in tiles, each through the tower by itself; pixel shuffle; a Qwen2 LLM.

A tile has one size, and a picture of more than one is followed by a thumbnail of the whole.
"""

from typing import Any, ClassVar

from vlmft.config.media import PixelBudget
from vlmft.errors import ConfigError
from vlmft.models.pixels import image_pixels, keep_frame_rule, refuse_budget, video_pixels
from vlmft.models.spec import Media, MediumText, Pixels
from vlmft.models.tiles import FramesAsTiles
from vlmft.models.tiny import TinyCheckpoint
from vlmft.types import Clip


class InternVL3(FramesAsTiles):
    """A checkpoint of transformers' `InternVLForConditionalGeneration`.

    A budget for pictures is one of tiles: an area divided by a tile's, rounded down.
    """

    block_paths: ClassVar = FramesAsTiles.block_paths | {"vision_tower": "model.vision_tower.encoder.layer"}
    coordinate_style: ClassVar = "thousand"
    unpacked_because: ClassVar = None

    def set_budgets(self, processor: Any) -> None:
        """See `ModelSpec`; the image processor keeps the least and largest number of tiles."""
        images = processor.image_processor
        images.min_patches, images.max_patches = self._tile_bounds(processor, self.image)
        images.crop_to_patches = True
        refuse_budget("video", self.video, self._tile(processor))
        keep_frame_rule(processor.video_processor, self.video)

    def seen_image(
        self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True
    ) -> tuple[int, int]:
        """See `ModelSpec`: a whole grid of tiles."""
        from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

        tile = self._tile(processor)
        columns, rows = get_optimal_tiled_canvas(size, tile, *self._tile_bounds(processor, budget))
        return rows * tile[0], columns * tile[1]

    def seen_frame(self, processor: Any, clip: Clip, budget: PixelBudget) -> tuple[int, int]:
        """See `ModelSpec`: one tile."""
        refuse_budget("video", budget, self._tile(processor))
        return self._tile(processor)

    def image_text(self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True) -> MediumText:
        """See `ModelSpec`: the tokens of all tiles, and of the thumbnail, between two marks."""
        height, width = self.seen_image(processor, size, budget)
        tile = self._tile(processor)
        tiles = (height // tile[0]) * (width // tile[1])
        return _marked(processor, processor.image_seq_length * (tiles + (tiles > 1)))

    def video_text(self, processor: Any, clip: Clip, budget: PixelBudget) -> MediumText:
        """See `ModelSpec`: each frame by itself, with its number."""
        frame = _marked(processor, processor.image_seq_length)
        text = "\n".join(f"Frame{number}: {frame.text}" for number in range(1, clip.num_frames + 1))
        return MediumText(text, frame.runs * clip.num_frames)

    def encode_image(self, processor: Any, picture: "Pixels", budget: PixelBudget, alone: bool = True) -> Media:
        """See `ModelSpec`. `pixels` is uint8 [tiles, C, H, W]."""
        low, high = self._tile_bounds(processor, budget)
        return {"pixels": image_pixels(processor, picture, min_patches=low, max_patches=high)["pixel_values"]}

    def encode_video(self, processor: Any, frames: Pixels, clip: Clip, budget: PixelBudget) -> Media:
        """See `ModelSpec`. `pixels` is uint8 [frames, C, H, W]."""
        return {"frames": video_pixels(processor, frames)["pixel_values_videos"][0]}

    def _tile(self, processor: Any) -> tuple[int, int]:
        size = processor.image_processor.size
        return size["height"], size["width"]

    def _tile_bounds(self, processor: Any, budget: PixelBudget) -> tuple[int, int]:
        """Least and largest number of tiles, of which either may be the checkpoint's own."""
        images, (height, width) = processor.image_processor, self._tile(processor)
        if budget.size is not None:
            raise ConfigError(
                f"model.image: height={budget.height} width={budget.width}: this checkpoint sees pictures in tiles of "
                f"{height} x {width} pixels; give min_pixels and max_pixels instead"
            )
        low = max(1, budget.min_pixels // (height * width)) if budget.min_pixels else images.min_patches
        high = budget.max_pixels // (height * width) if budget.max_pixels else images.max_patches
        if not 1 <= low <= high:
            raise ConfigError(
                f"model.image: min_pixels={budget.min_pixels} and max_pixels={budget.max_pixels} come to at least "
                f"{low} and at most {high} tiles of {height} x {width} pixels; change one of the two"
            )
        return low, high


def _marked(processor: Any, features: int) -> MediumText:
    return MediumText(f"{processor.start_image_token}{processor.image_token}{processor.end_image_token}", (features,))


class TinyInternVL3(TinyCheckpoint, InternVL3):
    """An InternVL3 of the real classes with random weights, small enough to learn on a CPU."""
