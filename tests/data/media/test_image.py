import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from tests.data.making import save_picture
from vlmft import types
from vlmft.data.media import image as module
from vlmft.data.media.image import image_size, open_image, open_pixels
from vlmft.errors import DataError


def pixels(path: Path) -> np.ndarray:
    """A picture's pixels, which are the same from its file, from bytes in memory, and as a Pillow image."""
    found = open_pixels(path)
    assert found.dtype == np.uint8 and found.shape[2] == 3 and found.flags.c_contiguous and found.flags.writeable
    in_memory = types.Image(Path("/tar/member"), path.read_bytes())
    for item in (path, types.Image(path), in_memory):
        assert image_size(item) == found.shape[:2]
        assert np.array_equal(open_pixels(item), found)
        picture = open_image(item)
        assert picture.mode == "RGB"
        assert np.array_equal(np.asarray(picture), found)
    return found


def saved(path: Path, picture: Image.Image, **options: Any) -> Path:
    picture.save(path, **options)
    return path


def noise(height: int = 37, width: int = 51) -> Image.Image:
    """Smooth enough that a JPEG is of ordinary size, rough enough that every step of a decoder shows."""
    small = np.random.default_rng(0).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


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


JPEGS: dict[str, dict[str, Any]] = {
    "420": {"subsampling": 2},
    "422": {"subsampling": 1},
    "444": {"subsampling": 0, "quality": 100},
    "worst": {"quality": 1},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 2},
    "RGB inside": {"keep_rgb": True},
    "profile": {"icc_profile": b"x" * 100, "comment": b"hello"},
}


@pytest.mark.parametrize("kind", [*JPEGS, "440", "411", "grey", "CMYK", "MPO", "more after the end"])
@pytest.mark.parametrize("size", [(37, 51), (1, 1), (16, 64), (8, 129)])
def test_a_jpeg_has_the_pixels_that_pillow_decodes(tmp_path, kind, size):
    path, picture = tmp_path / "a.jpg", noise(*size)
    if kind in JPEGS:
        picture.save(path, **JPEGS[kind])
    elif kind in ("440", "411"):
        path.write_bytes(simplejpeg.encode_jpeg(np.array(picture), colorsubsampling=kind))
    elif kind == "MPO":
        picture.save(path, "MPO", save_all=True, append_images=[Image.new("RGB", picture.size)])
    elif kind == "more after the end":
        path.write_bytes(saved(path, picture).read_bytes() + b"more")
    else:
        picture.convert({"grey": "L"}.get(kind, kind)).save(path)
    with Image.open(path) as opened:
        assert opened.format == ("MPO" if kind == "MPO" else "JPEG")
        expected = np.asarray(opened.convert("RGB"))
    assert np.array_equal(pixels(path), expected)


def test_a_damaged_jpeg_gives_what_pillow_makes_of_it(tmp_path, monkeypatch):
    """The same pixels, or the same message, as without the faster decoder."""
    whole = saved(tmp_path / "a.jpg", noise()).read_bytes()
    rng = np.random.default_rng(0)
    outcomes = {"pixels": 0, "messages": 0}

    def outcome() -> Any:
        try:
            return open_pixels(tmp_path / "a.jpg").tolist()
        except DataError as error:
            return str(error)

    for _ in range(150):
        data = bytearray(whole)
        for at in rng.integers(2, len(data), rng.integers(1, 4)):
            data[at] ^= 1 << int(rng.integers(0, 8))
        (tmp_path / "a.jpg").write_bytes(data if rng.random() < 0.7 else data[: rng.integers(20, len(data))])
        found = outcome()
        with monkeypatch.context() as patch:
            patch.setattr(module, "_from_jpeg", lambda _: None)
            assert outcome() == found
        outcomes["messages" if isinstance(found, str) else "pixels"] += 1
    assert min(outcomes.values()) > 30


def test_a_plain_jpeg_is_not_decoded_by_pillow(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.jpg", noise())
    expected = pixels(path)
    monkeypatch.setattr(module, "_to_rgb", None)
    assert np.array_equal(pixels(path), expected)


def test_a_jpeg_of_two_sizes_stays_within_the_first(tmp_path, monkeypatch):
    # The two decoders must agree about the size before anything of the second one's is kept.
    path = saved(tmp_path / "a.jpg", noise(16, 16))
    larger = saved(tmp_path / "b.jpg", noise(64, 64)).read_bytes()
    decode, given = simplejpeg.decode_jpeg, []

    def of_another(data: bytes, *args: Any, **options: Any) -> Any:
        given.append(len(data))
        return decode(larger, *args, **options)

    expected = pixels(path)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", of_another)
    assert np.array_equal(open_pixels(path), expected) and given == [path.stat().st_size]
    larger = saved(tmp_path / "b.jpg", noise(8, 8)).read_bytes()
    assert np.array_equal(open_pixels(path), expected)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff", "avif"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, suffix):
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("red", "lime", "blue")]
    path = saved(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:])
    with Image.open(path) as picture:
        assert picture.n_frames == 3
    assert np.abs(pixels(path).astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2, :, 3] = 255  # black above, nothing below
    picture = Image.fromarray(rgba)
    (picture.quantize(4) if mode == "P" else picture.convert(mode)).save(tmp_path / "a.png")
    found = pixels(tmp_path / "a.png")
    assert (found[:2] == 0).all()
    assert (found[2:] == 255).all()


def test_a_palette_s_transparent_entry_is_white(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    for suffix in ("png", "gif"):
        path = saved(tmp_path / f"a.{suffix}", picture, transparency=0)
        assert pixels(path)[0].tolist() == [[255, 255, 255], [0, 0, 255]]


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


def test_transparent_16_bit_grey_is_white(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(np.array([[0, 257, 65535]], np.uint16)))
    data = path.read_bytes()
    at = data.index(b"IDAT") - 4
    path.write_bytes(data[:at] + png_chunk(b"tRNS", struct.pack(">H", 257)) + data[at:])
    assert pixels(path)[0, :, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize(("colour", "expected"), [(2, [255, 128, 1]), (6, [255, 128, 1]), (4, [128, 128, 128])])
def test_16_bit_colours(tmp_path, colour, expected):
    row = {2: (65535, 0x80FF, 0x01FF), 6: (65535, 0x80FF, 0x01FF, 65535), 4: (0x80FF, 65535)}[colour]
    header = struct.pack(">IIBBBBB", 1, 1, 16, colour, 0, 0, 0)
    body = zlib.compress(b"\0" + struct.pack(f">{len(row)}H", *row))
    png = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png)
    assert pixels(tmp_path / "a.png")[0, 0].tolist() == expected  # Pillow keeps the upper byte of each


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


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff", "avif"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files_are_refused(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = io.BytesIO()
    Image.fromarray(noise).save(whole, {"jpg": "jpeg"}.get(suffix, suffix))
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(whole.getvalue()[: int(len(whole.getvalue()) * share)])
    for item in (path, types.Image(path, path.read_bytes())):
        with pytest.raises(DataError, match=rf"cut\.{suffix} .*replace the file"):
            open_pixels(item)


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
    with pytest.raises(DataError, match=r"/c\.png does not exist; correct the path, or remove its samples$"):
        open_image(tmp_path / "c.png")
    with pytest.raises(DataError, match=r"cannot be decoded: .*Is a directory"):
        open_image(tmp_path)
    with pytest.raises(DataError, match=r"^/tar/member is empty; replace the file"):
        open_image(types.Image(Path("/tar/member"), b""))
    with pytest.raises(DataError, match=r"^/tar/member is no picture in a known format .*; replace the file$"):
        open_image(types.Image(Path("/tar/member"), b"hello"))


@pytest.mark.parametrize("start", ["<!DOCTYPE html>", "\ufeff\n <HTML lang=en>", "<head>"])
def test_a_web_page_is_named(tmp_path, start):
    (tmp_path / "a.jpg").write_text(f"{start}<body>403 Forbidden</body>")
    with pytest.raises(DataError, match=r"a\.jpg is no picture .* but a web page, as a failed download leaves behind"):
        open_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("brands", [b"heic\0\0\0\0mif1heic", b"heix\0\0\0\0mif1", b"mif1\0\0\0\0mif1heic"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_heic_is_refused_by_name(tmp_path, brands, in_memory):
    data = struct.pack(">I", len(brands) + 8) + b"ftyp" + brands + struct.pack(">I", 64) + b"meta" + bytes(56)
    path = tmp_path / "a.jpg"
    path.write_bytes(b"" if in_memory else data)
    message = r"a\.jpg is a HEIC picture, which is not read; convert it to JPEG or PNG, and correct its path$"
    for read in (image_size, open_image):
        with pytest.raises(DataError, match=message):
            read(types.Image(path, data) if in_memory else path)


def test_postscript_is_not_handed_to_ghostscript(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    with pytest.raises(DataError, match="no picture in a known format"):
        open_image(tmp_path / "a.eps")


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def write_claim(path: Path, width: int, height: int) -> None:
    """A few bytes of PNG whose header claims any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(b""))
        + png_chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("function", [image_size, open_image, open_pixels])
def test_bombs_are_refused_from_the_header(tmp_path, function, monkeypatch):
    write_claim(tmp_path / "a.png", 20_000, 10_000)
    with pytest.raises(DataError, match=r"a\.png claims more than 178956970 pixels; make it smaller"):
        function(tmp_path / "a.png")
    # Other libraries switch Pillow's own limit off.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    in_memory = types.Image(tmp_path / "a.png", (tmp_path / "a.png").read_bytes())
    for item in (tmp_path / "a.png", in_memory):
        with pytest.raises(DataError, match=r"a\.png claims 20000 x 10000 pixels, more than 178956970"):
            function(item)


def test_a_jpeg_bomb_is_refused_from_the_header(tmp_path):
    data = bytearray(saved(tmp_path / "a.jpg", noise(8, 8)).read_bytes())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.jpg claims more than 178956970 pixels; make it smaller"):
        open_pixels(tmp_path / "a.jpg")


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
