"""Pictures: size from the header, and pixels as 8-bit RGB whatever the file holds."""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from vlmft.errors import DataError

MAX_PIXELS = 178_956_970
"""Larger pictures are refused from the header (a small file can claim any size); the same as Pillow's own limit."""

# Only these decoders are tried: Pillow would hand an EPS file to Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")

# What Pillow's decoders raise on damaged input.
_DAMAGE = (OSError, SyntaxError, ValueError, LookupError, TypeError, RuntimeError, EOFError, struct.error, zlib.error)

_EXIF_ORIENTATION = 0x0112
_UPRIGHT: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) in pixels as `open_image` will give them, from the header alone.

    Raises:
        DataError: no readable picture, or more than `MAX_PIXELS`.
    """
    with _opened(path) as picture:
        width, height = picture.size
        return (width, height) if _orientation(picture) in _SIDEWAYS else (height, width)


def open_image(path: Path) -> Image.Image:
    """Decode a picture to upright 8-bit RGB.

    The EXIF orientation is applied, transparency is laid on white, and 16-bit grey is scaled, not clipped.

    Raises:
        DataError: no readable picture, damaged or truncated, or more than `MAX_PIXELS`.
    """
    with _opened(path) as picture:
        orientation = _orientation(picture)
        picture.load()
        rgb = _to_rgb(picture)
        return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """Open a picture, and turn whatever its decoder raises into a `DataError` that names the file."""
    # These say nothing that is not an error here, or harmless. Not catch_warnings: threads share it.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty; replace the file or remove its samples")
        with Image.open(path, formats=_formats()) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise DataError(f"{path} claims {width} x {height} pixels, more than {MAX_PIXELS}; make it smaller")
            yield picture
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"{path} claims more than {MAX_PIXELS} pixels; make it smaller") from None
    except UnidentifiedImageError:
        raise DataError(f"{path} is no picture in a known format ({', '.join(_formats())}); replace the file") from None
    except _DAMAGE as error:
        raise DataError(f"{path} cannot be decoded: {error}; replace the file or remove its samples") from error


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _orientation(picture: ImageFile.ImageFile) -> int:
    # Pillow itself turns a TIFF upright, and gives the size that it then has.
    if picture.format == "TIFF":
        return 1
    # Asked for EXIF, Pillow decodes a whole PNG to find what may stand after the pixels. What stands there is
    # left alone, here and in open_image, so that the size from the header is the size of the pixels.
    if picture.format == "PNG" and "exif" not in picture.info:
        return 1
    try:
        return int(picture.getexif().get(_EXIF_ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, LookupError, struct.error):
        return 1  # camera notes that cannot be read say nothing; the pixels may be fine


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        return _from_16_bit(picture)
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is not known; save it with 8 or 16 bits")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def _from_16_bit(picture: Image.Image) -> Image.Image:
    grey: np.ndarray[Any, Any] = np.asarray(picture).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError(f"its pixels go from {grey.min()} to {grey.max()}; save it with 8 or 16 bits")
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
