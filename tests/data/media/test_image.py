import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.making import save_picture
from vlmft.data.media import image as module
from vlmft.data.media.image import image_size, open_image
from vlmft.errors import DataError


def pixels(path: Path) -> np.ndarray:
    picture = open_image(path)
    assert picture.mode == "RGB"
    assert image_size(path) == (picture.height, picture.width)
    return np.asarray(picture)


def test_size_is_height_and_width(tmp_path):
    assert image_size(save_picture(tmp_path / "a.png", (30, 20))) == (20, 30)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff", "ppm"])
def test_formats(tmp_path, suffix):
    path = save_picture(tmp_path / f"a.{suffix}", (32, 16), "red")
    assert np.abs(pixels(path).astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "avif"])
def test_exif_orientation(tmp_path, orientation, suffix):
    # What each value says of the stored rows and columns (Exif 2.32, 4.6.4): undoing it gives back the upright picture.
    store = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255
    upright[8:, :16] = 120
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.ascontiguousarray(store(upright))).save(path, exif=exif, quality=100)
    found = pixels(path).astype(int)
    assert found.shape == upright.shape
    assert np.abs(found - upright).mean() < 4


def test_a_size_needs_no_pixels(tmp_path):
    path = save_picture(tmp_path / "a.png", (300, 200))
    path.write_bytes(path.read_bytes().partition(b"IDAT")[0] + b"IDAT")
    assert image_size(path) == (200, 300)
    with pytest.raises(DataError, match="cannot be decoded"):
        open_image(path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_modes_without_transparency(tmp_path, mode):
    suffix = {"CMYK": "jpg", "YCbCr": "jpg"}.get(mode, "png")
    ramp = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (16, 16)))
    ramp.convert("RGB").convert(mode).save(tmp_path / f"a.{suffix}")
    assert np.abs(pixels(tmp_path / f"a.{suffix}").astype(int) - np.asarray(ramp)[..., None]).mean() < 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2, :, 3] = 255  # black above, nothing below
    picture = Image.fromarray(rgba)
    (picture.quantize(4) if mode == "P" else picture.convert(mode)).save(tmp_path / "a.png")
    found = pixels(tmp_path / "a.png")
    assert (found[:2] == 0).all()
    assert (found[2:] == 255).all()


def test_half_transparency_is_half_white(tmp_path):
    Image.new("RGBA", (2, 2), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert (pixels(tmp_path / "a.png") == 127).all()


def test_a_transparent_colour_counts(tmp_path):
    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "a.png", transparency=(1, 2, 3))
    assert (pixels(tmp_path / "a.png") == 255).all()


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    assert pixels(tmp_path / f"a.{suffix}")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_a_16_bit_pgm_is_scaled(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535\n" + struct.pack(">HH", 0, 65535))
    assert pixels(tmp_path / "a.pgm")[0, :, 0].tolist() == [0, 255]


def test_numbers_of_unknown_range_are_refused(tmp_path):
    Image.fromarray(np.array([[0.0, 1.0]], np.float32)).save(tmp_path / "f.tiff")
    Image.fromarray(np.array([[-1, 99999]], np.int32)).save(tmp_path / "i.tiff")
    with pytest.raises(DataError, match=r"f\.tiff cannot be decoded: its pixels are floating-point"):
        open_image(tmp_path / "f.tiff")
    with pytest.raises(DataError, match=r"i\.tiff cannot be decoded: its pixels go from -1 to 99999"):
        open_image(tmp_path / "i.tiff")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files_are_refused(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = io.BytesIO()
    Image.fromarray(noise).save(whole, {"jpg": "jpeg"}.get(suffix, suffix))
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(whole.getvalue()[: int(len(whole.getvalue()) * share)])
    with pytest.raises(DataError, match=rf"cut\.{suffix} .*replace the file"):
        open_image(path)


def test_a_flipped_byte_in_a_png_is_refused(tmp_path):
    data = bytearray(save_picture(tmp_path / "a.png", (64, 64)).read_bytes())
    data[data.index(b"IDAT") + 10] ^= 0xFF
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.png cannot be decoded"):
        open_image(tmp_path / "a.png")


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("hello")
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.png is no picture in a known format \(JPEG, PNG"):
        image_size(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"b\.png is empty; replace the file"):
        open_image(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"c\.png cannot be decoded: .*No such file"):
        open_image(tmp_path / "c.png")


def test_postscript_is_not_handed_to_ghostscript(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    with pytest.raises(DataError, match="no picture in a known format"):
        open_image(tmp_path / "a.eps")


def write_claim(path: Path, width: int, height: int) -> None:
    """A few bytes of PNG whose header claims any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("function", [image_size, open_image])
def test_bombs_are_refused_from_the_header(tmp_path, function, monkeypatch):
    write_claim(tmp_path / "a.png", 20_000, 10_000)
    with pytest.raises(DataError, match=r"a\.png claims more than 178956970 pixels; make it smaller"):
        function(tmp_path / "a.png")
    # Other libraries switch Pillow's own limit off.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(DataError, match=r"a\.png claims 20000 x 10000 pixels, more than 178956970"):
        function(tmp_path / "a.png")


@pytest.mark.filterwarnings("error")
def test_a_bomb_warning_made_an_error_is_a_data_error(tmp_path):
    write_claim(tmp_path / "a.png", 10_000, 10_000)
    with pytest.raises(DataError, match="claims more than"):
        image_size(tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_large_picture_below_the_limit_is_read(tmp_path):
    write_claim(tmp_path / "a.png", 10_000, 10_000)
    assert image_size(tmp_path / "a.png") == (10_000, 10_000)


def test_files_are_closed(tmp_path):
    import psutil

    path = save_picture(tmp_path / "a.png")
    open_image(path)
    image_size(path)
    assert str(path) not in [file.path for file in psutil.Process().open_files()]


def test_the_limit_is_pillows_own():
    assert module.MAX_PIXELS == Image.MAX_IMAGE_PIXELS * 2
