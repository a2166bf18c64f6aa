"""What families do alike that see a video's frames as they see a picture's tiles: through one tower, as one stack."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlmft.models.pictures import Pictures
from vlmft.models.pixels import as_pictures, normalised
from vlmft.models.spec import Media, MediaKind, Pixels

if TYPE_CHECKING:
    from torch import Tensor


class FramesAsTiles(Pictures, abstract=True):
    """A family that takes videos too, written in pictures' tokens; `frames` are uint8 [N, C, H, W], each a tile."""

    def placeholders(self, processor: Any) -> dict[MediaKind, str]:
        """See `ModelSpec`."""
        return super().placeholders(processor) | {"video": processor.video_token}

    def shown(self, processor: Any, media: Media) -> Pixels:
        """See `ModelSpec`."""
        return as_pictures(media["frames" if "frames" in media else "pixels"])

    def collate(self, processor: Any, input_ids: "Tensor", media: Sequence[Media]) -> dict[str, "Tensor"]:
        """See `ModelSpec`: tiles and frames in reading order. `is_frame` [N] tells one from the other."""
        import torch

        if not media:
            return {}
        pixels = [item["frames" if "frames" in item else "pixels"] for item in media]
        is_frame = [torch.full((len(found),), "frames" in item) for item, found in zip(media, pixels, strict=True)]
        return {"pixels": torch.cat(pixels), "is_frame": torch.cat(is_frame)}

    def model_inputs(self, processor: Any, inputs: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
        """See `ModelSpec`. `pixel_values` is float32 [tiles and frames, C, H, W], each as its own processor scales."""
        import torch

        inputs = dict(inputs)
        if "pixels" in inputs:
            pixels, is_frame = inputs.pop("pixels"), inputs.pop("is_frame")[:, None, None, None]
            images, videos = (normalised(p, pixels) for p in (processor.image_processor, processor.video_processor))
            inputs["pixel_values"] = torch.where(is_frame, videos, images)
        return inputs
