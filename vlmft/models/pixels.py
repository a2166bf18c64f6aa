"""What families share whose pixels come from transformers' own processors: those, up to the last step.

The last step makes float32 of uint8: four times as much to hand over between processes. So the official processor is
asked to leave it out, and it is done on the device, by the processor's own function: bit for bit the same.
"""

from typing import TYPE_CHECKING, Any

from vlmft.config.media import PixelBudget
from vlmft.errors import ConfigError
from vlmft.models.spec import Pixels

if TYPE_CHECKING:
    from torch import Tensor


def image_pixels(processor: Any, picture: Pixels, **options: Any) -> dict[str, Any]:
    """What the image processor makes of one picture; `pixel_values` stay uint8.

    Args:
        options: of the image processor, where they differ from its own.
    """
    import PIL.Image

    options = dict(getattr(type(processor), "images_kwargs", {})) | options
    options |= {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
    return dict(processor.image_processor(images=[PIL.Image.fromarray(picture)], **options))


def video_pixels(processor: Any, frames: Pixels, **options: Any) -> dict[str, Any]:
    """What the video processor makes of one video's chosen frames, [T, H, W, 3]; `pixel_values_videos` stay uint8."""
    import torch

    video = torch.from_numpy(frames).permute(0, 3, 1, 2)
    part = processor.video_processor
    options |= {"do_rescale": False, "do_normalize": False, "do_sample_frames": False}
    return dict(part(videos=[video], return_tensors="pt", **options))


def normalised(part: Any, pixels: "Tensor") -> "Tensor":
    """uint8 pixels [..., C, H, W] as the image or video processor `part` hands them to the model, float32."""
    found: Tensor = part.rescale_and_normalize(
        pixels, part.do_rescale, part.rescale_factor, part.do_normalize, part.image_mean, part.image_std
    )
    return found


def as_pictures(pixels: "Tensor") -> Pixels:
    """uint8 pixels [N, C, H, W] as pictures [N, H, W, C]."""
    found: Pixels = pixels.permute(0, 2, 3, 1).numpy()
    return found


def refuse_budget(kind: str, budget: PixelBudget, size: tuple[int, int]) -> None:
    """Raise `ConfigError` where a family that sees everything at one `size` is given another."""
    given = {name: getattr(budget, name) for name in ("min_pixels", "max_pixels", "height", "width")}
    if found := {name: value for name, value in given.items() if value is not None}:
        said = ", ".join(f"{name}={value}" for name, value in found.items())
        raise ConfigError(
            f"model.{kind}: {said}: this checkpoint sees every {'picture' if kind == 'image' else 'frame'} at "
            f"{size[0]} x {size[1]} pixels; leave it null"
        )


def keep_frame_rule(videos: Any, rule: Any) -> None:
    """Write a run's rule for frames into a video processor, so that it is saved with the model."""
    videos.do_sample_frames = True
    videos.num_frames, videos.fps = rule.num_frames, rule.fps
    for name in ("min_frames", "max_frames"):
        if getattr(rule, name) is not None and hasattr(videos, name):
            setattr(videos, name, getattr(rule, name))
