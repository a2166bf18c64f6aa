"""Pictures: size from the header, and pixels as 8-bit RGB whatever the file holds. Of an animation, its first frame."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from PIL import Image, ImageFile, UnidentifiedImageError

from vlmft import types
from vlmft.errors import DataError

Pixels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]
Picture: TypeAlias = types.Image | Path
"""A picture as a sample holds it, or its file."""

MAX_PIXELS = 178_956_970
"""Larger pictures are refused from the header (a small file can claim any size); the same as Pillow's own limit."""

# Only these decoders are tried: Pillow would hand an EPS file to Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")

# What Pillow's decoders raise on damaged input.
_DAMAGE = (OSError, SyntaxError, ValueError, LookupError, TypeError, RuntimeError, EOFError, struct.error, zlib.error)

_HEAD = 64  # bytes that say what an unknown file is
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")

_EXIF_ORIENTATION = 0x0112
# Each EXIF orientation undone: steps along rows and columns, and whether they change places afterwards.
_UPRIGHT = {
    2: (1, -1, False),
    3: (-1, -1, False),
    4: (-1, 1, False),
    5: (1, 1, True),
    6: (-1, 1, True),
    7: (-1, -1, True),
    8: (1, -1, True),
}
_SIDEWAYS = (5, 6, 7, 8)


def image_size(item: Picture) -> tuple[int, int]:
    """Return (height, width) in pixels as `open_pixels` will give them, from the header alone.

    Raises:
        DataError: no readable picture, or more than `MAX_PIXELS`.
    """
    with _opened(item) as picture:
        width, height = picture.size
        return (width, height) if _orientation(picture) in _SIDEWAYS else (height, width)


def open_pixels(item: Picture) -> Pixels:
    """Decode a picture to upright 8-bit RGB, [H, W, 3], contiguous.

    The EXIF orientation is applied, transparency is laid on white, and 16-bit grey is scaled, not clipped.

    Raises:
        DataError: no readable picture, damaged or truncated, or more than `MAX_PIXELS`.
    """
    with _opened(item) as picture:
        orientation = _orientation(picture)
        pixels = _from_jpeg(picture)
        if pixels is None:
            picture.load()
            pixels = np.array(_to_rgb(picture))
        return _turned(pixels, *_UPRIGHT[orientation]) if orientation in _UPRIGHT else pixels


def open_image(item: Picture) -> Image.Image:
    """As `open_pixels`, for those who take a Pillow image."""
    return Image.fromarray(open_pixels(item))


@contextmanager
def _opened(item: Picture) -> Iterator[ImageFile.ImageFile]:
    """Open a picture, and turn whatever its decoder raises into a `DataError` that names the file."""
    path, data = (item.path, item.data) if isinstance(item, types.Image) else (item, None)
    # These say nothing that is not an error here, or harmless. Not catch_warnings: threads share it.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    try:
        if (path.stat().st_size if data is None else len(data)) == 0:
            raise DataError(f"{path} is empty; replace the file or remove its samples")
        with Image.open(path if data is None else io.BytesIO(data), formats=_formats()) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise DataError(f"{path} claims {width} x {height} pixels, more than {MAX_PIXELS}; make it smaller")
            yield picture
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"{path} claims more than {MAX_PIXELS} pixels; make it smaller") from None
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; correct the path, or remove its samples") from None
    except UnidentifiedImageError:
        raise DataError(_unknown(path, _head(path) if data is None else data[:_HEAD])) from None
    except _DAMAGE as error:
        raise DataError(f"{path} cannot be decoded: {error}; replace the file or remove its samples") from error


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


def _unknown(path: Path, head: bytes) -> str:
    """What to say of a file that no decoder takes, by its first bytes."""
    if head[4:8] == b"ftyp" and any(brand in head for brand in _HEIC_BRANDS):
        return f"{path} is a HEIC picture, which is not read; convert it to JPEG or PNG, and correct its path"
    problem = f"{path} is no picture in a known format ({', '.join(_formats())})"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        return f"{problem} but a web page, as a failed download leaves behind; fetch the file again"
    return f"{problem}; replace the file"


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _orientation(picture: ImageFile.ImageFile) -> int:
    # Pillow itself turns a TIFF upright, and gives the size that it then has.
    if picture.format == "TIFF":
        return 1
    # Asked for EXIF, Pillow decodes a whole PNG to find what may stand after the pixels. What stands there is
    # left alone, here and in open_pixels, so that the size from the header is the size of the pixels.
    if picture.format == "PNG" and "exif" not in picture.info:
        return 1
    try:
        return int(picture.getexif().get(_EXIF_ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, LookupError, struct.error):
        return 1  # camera notes that cannot be read say nothing; the pixels may be fine


def _from_jpeg(picture: ImageFile.ImageFile) -> Pixels | None:
    """The pixels of a JPEG that holds RGB or grey; None where Pillow is to decode it, or to say what is wrong.

    They are Pillow's own, bit for bit (both are libjpeg-turbo; 42,000 whole and damaged files gave the same pixels and
    messages), without its copies: 0.3, 2 and 12 megapixels take 1.1, 5.7 and 35 ms, and 1.8, 9.3 and 148 ms through
    Pillow (one core, CPU time, medians of 15 in turns).
    """
    if picture.format not in ("JPEG", "MPO") or picture.mode not in ("RGB", "L") or picture.fp is None:
        return None
    pixels = np.empty((picture.height, picture.width, 3), np.uint8)
    picture.fp.seek(0)
    try:
        found: Pixels = simplejpeg.decode_jpeg(picture.fp.read(), "RGB", buffer=pixels)
    except ValueError:
        return None
    return pixels if found.shape == pixels.shape else None


def _turned(pixels: Pixels, rows: int, columns: int, swap: bool) -> Pixels:
    """Mirrored where a step is -1, then, with `swap`, rows and columns exchanged."""
    # A pixel moves as one item of three bytes: 0.7 times the time of moving its bytes.
    whole = pixels.view("V3")[::rows, ::columns, 0]
    whole = np.ascontiguousarray(whole.T if swap else whole)
    return whole.view(np.uint8).reshape(*whole.shape, 3)


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
    scaled = ((grey + 128) // 257).astype(np.uint8)
    if "transparency" in picture.info:
        scaled[grey == picture.info["transparency"]] = 255
    return Image.fromarray(scaled).convert("RGB")
