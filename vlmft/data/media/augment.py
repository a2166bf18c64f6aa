"""Random changes of pictures and videos: what part is seen is drawn from the header's size, the rest from the same key.

H, W = height and width of what is seen, T = frames of a video.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image

from vlmft.config.media import Augmentation
from vlmft.data.hashing import mix, mix_each, salt
from vlmft.errors import DataError

if TYPE_CHECKING:
    from vlmft.data.media.coordinates import Box

P = TypeVar("P", Image.Image, np.ndarray[Any, Any])

_MAX_JPEG_SIDE = 65_500  # libjpeg's JPEG_MAX_DIMENSION
_MAX_QUALITY = 95

# A crop makes a picture narrower than this only where it was so before: families refuse very narrow ones (Qwen: 200).
_NARROW = 4


@dataclass(frozen=True, slots=True)
class View:
    """What is seen of a picture of `height` x `width` pixels, upright: a part of it, then maybe mirrored."""

    height: int
    width: int
    crop_height: int
    crop_width: int
    top: int = 0
    left: int = 0
    flipped: bool = False
    """Left and right change places, after the crop."""

    @classmethod
    def whole(cls, height: int, width: int) -> "View":
        """All of a picture, as it is."""
        return cls(height, width, height, width)


def draw_view(augment: Augmentation | None, height: int, width: int, key: int, keep: "Sequence[Box]" = ()) -> View:
    """Draw what is seen of a picture or video of this size, in pixels.

    Args:
        key: 64 bits from (seed, epoch, sample id, which medium); equal keys draw equal views.
        keep: no crop cuts any of these.
    """
    if augment is None:
        return View.whole(height, width)
    tall, wide, down, across, mirror = _draws(key, "view", 5)
    boxes = [box.pixels(height, width) for box in keep]
    rows = _span(height, [(box.top, box.bottom) for box in boxes])
    columns = _span(width, [(box.left, box.right) for box in boxes])
    crop_height = max(_part(height, augment.crop, tall), rows[1] - rows[0])
    crop_width = max(_part(width, augment.crop, wide), columns[1] - columns[0])
    narrow = max(_NARROW, height / width, width / height)
    crop_height = min(height, max(crop_height, math.ceil(crop_width / narrow)))
    crop_width = min(width, max(crop_width, math.ceil(crop_height / narrow)))
    return View(
        height,
        width,
        crop_height,
        crop_width,
        top=_place(height, crop_height, rows, down),
        left=_place(width, crop_width, columns, across),
        flipped=mirror < augment.flip,
    )


def augmented(picture: P, view: View, augment: Augmentation | None, key: int) -> P:
    """Crop to `view`, mirror, move the colours and compress, in this order, as far as `augment` says.

    Every frame of a video is changed alike. What changes nothing gives `picture` itself back.

    Args:
        picture: an RGB picture, or uint8 pixels [H, W, 3] of a picture or [T, H, W, 3] of a video.
        key: as `draw_view`; what is drawn here has nothing in common with the view.

    Raises:
        DataError: it is not of the size that the view was drawn for, or too large to compress as JPEG.
    """
    height, width = picture.shape[-3:-1] if isinstance(picture, np.ndarray) else (picture.height, picture.width)
    if (height, width) != (view.height, view.width):
        raise DataError(
            f"it is decoded as {width} x {height} pixels, but its header says {view.width} x {view.height}; "
            "write the file anew"
        )
    seen = _seen(picture, view)
    if augment is None or not (augment.colour or augment.jpeg):
        return seen
    look = _Look(augment, key)
    if not isinstance(seen, np.ndarray):
        return look.of(seen)
    frames = seen[None] if seen.ndim == 3 else seen
    changed = np.empty_like(frames)
    for number, frame in enumerate(frames):
        changed[number] = look.of(Image.fromarray(frame))
    return changed.reshape(seen.shape)


class _Look:
    """Changes of colour and compression: drawn once, then the same for every frame."""

    def __init__(self, augment: Augmentation, key: int) -> None:
        *shares, quality = _draws(key, "look", 4)
        self.brightness, self.contrast, self.saturation = (1 + augment.colour * (2 * share - 1) for share in shares)
        self.colour = augment.colour > 0
        self.quality = augment.jpeg and augment.jpeg + int(quality * (_MAX_QUALITY + 1 - augment.jpeg))

    def of(self, picture: Image.Image) -> Image.Image:
        if self.colour:
            from PIL import ImageEnhance

            picture = ImageEnhance.Brightness(picture).enhance(self.brightness)
            picture = ImageEnhance.Contrast(picture).enhance(self.contrast)
            picture = ImageEnhance.Color(picture).enhance(self.saturation)
        return picture if self.quality is None else _compressed(picture, self.quality)


def _compressed(picture: Image.Image, quality: int) -> Image.Image:
    if max(picture.size) > _MAX_JPEG_SIDE:
        raise DataError(
            f"its {picture.width} x {picture.height} pixels cannot be compressed as JPEG (at most {_MAX_JPEG_SIDE} a "
            "side); leave augment.jpeg null for this entry, or make the picture smaller"
        )
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file, formats=("JPEG",)).convert("RGB")


def _seen(picture: P, view: View) -> P:
    bottom, right = view.top + view.crop_height, view.left + view.crop_width
    if isinstance(picture, np.ndarray):
        part = picture[..., view.top : bottom, view.left : right, :]
        part = part[..., ::-1, :] if view.flipped else part
        return picture if part.shape == picture.shape and not view.flipped else np.ascontiguousarray(part)
    if (view.crop_height, view.crop_width) != (view.height, view.width):
        picture = picture.crop((view.left, view.top, right, bottom))
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flipped else picture


def _draws(key: int, purpose: str, count: int) -> list[float]:
    """Numbers in [0, 1) that depend on `key` and `purpose` alone, on every machine and in every version of NumPy."""
    keys = mix(np.full(count, key, dtype=np.uint64), salt(purpose))
    numbers = mix_each(keys, np.arange(count, dtype=np.uint64))
    return [(int(number) >> 11) * 2.0**-53 for number in numbers]


def _part(side: int, least: float, share: float) -> int:
    return min(side, math.ceil(side * (least + share * (1 - least))))


def _span(side: int, ranges: Sequence[tuple[float, float]]) -> tuple[int, int]:
    """The first and one past the last pixel that holds something of `ranges`; (side, 0) where there are none."""
    # A mark on a pixel's far edge may mean that pixel or the next: both are kept.
    first = min((math.floor(low) for low, _ in ranges), default=side)
    last = max((math.floor(high) + 1 for _, high in ranges), default=0)
    return min(max(first, 0), side), min(max(last, 0), side)


def _place(side: int, crop: int, span: tuple[int, int], share: float) -> int:
    """Where a crop begins that holds `span` and stays inside; each place has the same chance."""
    low, high = max(0, span[1] - crop), min(side - crop, span[0])
    return low + int(share * (high - low + 1))
