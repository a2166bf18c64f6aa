"""A page's pictures, as files; the page stays small enough for a browser."""

import io
from typing import Any

import numpy as np
from PIL import Image

from vlmft.webpage import data_uri

MAX_BYTES = 24_000_000
"""Of all pictures of a page together, as files."""

_PNG_PIXELS = 256 * 256  # larger ones are JPEGs: a tenth of the bytes, in a tenth of the time
_QUALITY = 90
_SMALLEST = 1 / 64


class Album:
    """Pictures by number. Where they come to more than `max_bytes`, all are halved on each side, as often as needed.

    `scale` is what is left of a side.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.scale = 1.0
        self._files: list[bytes] = []
        self._total = 0

    def add(self, pixels: "np.ndarray[Any, np.dtype[np.uint8]]") -> int:
        """Keep a picture, [H, W, 3]; return its number."""
        self._files.append(_encoded(_shrunk(Image.fromarray(pixels), self.scale)))
        self._total += len(self._files[-1])
        while self._total > self.max_bytes and self.scale > _SMALLEST:
            self.scale /= 2
            self._files = [_encoded(_shrunk(_decoded(file), 0.5)) for file in self._files]
            self._total = sum(map(len, self._files))
        return len(self._files) - 1

    def uri(self, number: int) -> str:
        """A picture as an address that holds it whole."""
        file = self._files[number]
        return data_uri(file, "image/png" if file.startswith(b"\x89PNG") else "image/jpeg")

    def pixels(self, number: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        """A picture as it is kept, [H, W, 3]."""
        return np.asarray(_decoded(self._files[number]))


def _shrunk(picture: Image.Image, scale: float) -> Image.Image:
    if scale == 1:
        return picture
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _encoded(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    if picture.width * picture.height <= _PNG_PIXELS:
        picture.save(file, "PNG")
    else:
        picture.save(file, "JPEG", quality=_QUALITY, subsampling=0)
    return file.getvalue()


def _decoded(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file)).convert("RGB")
