"""The page's pictures: exact where they are small, and never more than the page may hold."""

import base64
import io

import numpy as np
import PIL.Image
import pytest

from tests.support import noise
from vlmft.previewing.album import Album


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.asarray(noise(height, width, seed))


def opened(uri: str) -> PIL.Image.Image:
    kind, _, data = uri.removeprefix("data:").partition(";base64,")
    picture = PIL.Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == f"image/{(picture.format or '').lower()}"
    return picture


def test_a_small_picture_is_kept_to_the_bit() -> None:
    album, picture = Album(), pixels(256, 256)
    shown = opened(album.uri(album.add(picture)))
    assert shown.format == "PNG" and (np.asarray(shown) == picture).all()
    assert (album.pixels(0) == picture).all()


def test_a_larger_one_is_a_jpeg_of_its_size() -> None:
    ramp = np.broadcast_to(np.arange(300, dtype=np.uint8)[:, None, None] // 2, (300, 400, 3)).copy()
    album = Album()
    shown = opened(album.uri(album.add(ramp)))
    assert (shown.format, shown.size) == ("JPEG", (400, 300))
    assert np.abs(np.asarray(shown).astype(int) - ramp).max() <= 3


@pytest.mark.parametrize(("count", "scale"), [(2, 1.0), (3, 0.5), (12, 0.25)])
def test_pictures_are_halved_where_they_come_to_too_much(count: int, scale: float) -> None:
    """A PNG of noise, 64 x 64 x 3 bytes, has 12,000 bytes."""
    album = Album(max_bytes=30_000)
    numbers = [album.add(pixels(64, 64, seed)) for seed in range(count)]
    assert numbers == list(range(count)) and album.scale == scale
    assert [opened(album.uri(n)).size for n in numbers] == [(64 * scale, 64 * scale)] * count
    assert sum(len(base64.b64decode(album.uri(n).partition(",")[2])) for n in numbers) <= 30_000


def test_shrinking_ends(caplog: pytest.LogCaptureFixture) -> None:
    album = Album(max_bytes=1)
    album.add(pixels(64, 64))
    assert album.scale == 1 / 64 and opened(album.uri(0)).size == (1, 1)
