import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.fuzz.cases import SIZES, cases, only_own_errors
from tests.support import noise
from vlmft.data import LLaVADataset
from vlmft.data.hashing import id_hashes
from vlmft.data.media import image as image_module
from vlmft.data.media.image import image_size, open_image

# Any code point, halves of pairs among them: JSON writes them as \ud800.
TEXTS = st.text(st.characters(exclude_categories=()), max_size=8)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS)
ANYTHING = st.recursive(
    SCALARS, lambda below: st.lists(below, max_size=3) | st.dictionaries(TEXTS, below, max_size=3), max_leaves=6
)
SAID = st.one_of(
    TEXTS,
    st.lists(st.sampled_from(["<image>", "\n", "\r\n", "<video>", "text", "\ud800", " "]), max_size=5).map("".join),
)
TURNS = st.fixed_dictionaries(
    {}, optional={"from": st.sampled_from(["human", "gpt", "system", "user"]) | ANYTHING, "value": SAID | ANYTHING}
)
DIALOGUES = st.lists(st.tuples(SAID, SAID), min_size=1, max_size=2).map(
    lambda pairs: [
        {"from": speaker, "value": text} for pair in pairs for speaker, text in zip(("human", "gpt"), pair, strict=True)
    ]
)
PATHS = st.one_of(
    st.sampled_from(
        [
            "a.png",
            "./a.png",
            "../a.png",
            "/etc/passwd",
            "~/a.png",
            "http://x/a.png",
            "\ud800.png",
            "\0",
            ".",
            "a/" * 3000,
        ]
    ),
    TEXTS,
    ANYTHING,
)
ROWS = (
    st.fixed_dictionaries(
        {"conversations": DIALOGUES | st.lists(TURNS, max_size=3) | ANYTHING},
        optional={
            "id": SCALARS | ANYTHING | st.sampled_from(["\ud800", "x"]),
            "image": PATHS | st.lists(PATHS, max_size=3),
            "video": SCALARS,
            "images": SCALARS,
        },
    )
    | ANYTHING
)
PIECES = st.sampled_from(
    [
        b"[", b"]", b"{", b"}", b",", b":", b'"', b'"id"', b'{"conversations": []}', b"null", b"1", b"-", b"1e999",
        b"NaN", b"9" * 5000, b"\n", b"\r", b" ", b"\xff\xfe", b"\xef\xbb\xbf", b"\xff", b"\x00", b"\\u", b"\\ud800",
        b"[" * 980, b"]" * 980, b"[" * 100_000, b'{"a":' * 990,
    ]
)  # fmt: skip

FORMATS = ["png", "jpeg", "gif", "tiff", "bmp", "webp"]
HEADER = 200


@SIZES
def test_rows(times: int, tmp_path: Path) -> None:
    noise(8, 8).save(tmp_path / "a.png")

    @cases("rows", times)
    @given(st.lists(ROWS, min_size=1, max_size=3), st.sampled_from(["rows.json", "rows.jsonl"]))
    def case(rows: list[Any], file: str) -> None:
        texts = [json.dumps(row) for row in rows]
        data = "\n".join(texts) if file.endswith("l") else "[" + ",\n".join(texts) + "]"
        read(tmp_path / file, data.encode())

    case()


@SIZES
def test_files(times: int, tmp_path: Path) -> None:
    @cases("files", times)
    @given(
        st.lists(PIECES | st.binary(max_size=5), max_size=8).map(b"".join), st.sampled_from(["rows.json", "rows.jsonl"])
    )
    def case(data: bytes, file: str) -> None:
        read(tmp_path / file, data)

    case()


def read(file: Path, data: bytes) -> None:
    """Do with a file's rows what a run does."""
    file.write_bytes(data)
    with only_own_errors():
        source = LLaVADataset(data_path=file).open("mine")
        id_hashes(source, range(len(source)))
        for row in range(len(source)):
            assert isinstance(source.content_key(row), bytes)
            with only_own_errors():
                source.check_row(row)
            with only_own_errors():
                sample = source[row]
                sample.id.encode()
                assert all(picture.path.is_relative_to(file.parent) for picture in sample.images)


@cache
def picture(kind: str, variant: int) -> bytes:
    """A small real file with the headers that a camera or an editor leaves."""
    image = noise(16, 24, seed=variant)
    exif = Image.Exif()
    exif[0x0112] = 6
    options: dict[str, Any] = {
        "png": {"exif": exif, "dpi": (72, 72)},
        "jpeg": {"exif": exif, "progressive": bool(variant)},
        "gif": {"save_all": True, "append_images": [noise(16, 24, seed=9)], "comment": b"c"},
        "tiff": {"compression": ["raw", "tiff_lzw"][variant], "exif": exif},
        "bmp": {},
        "webp": {"exif": exif, "lossless": bool(variant)},
    }[kind]
    if variant and kind in ("png", "bmp", "gif"):
        image = image.quantize(16)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@st.composite
def damaged_pictures(draw: st.DrawFn) -> bytes:
    data = bytearray(picture(draw(st.sampled_from(FORMATS)), draw(st.integers(0, 1))))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(HEADER, len(data)) - 1))
        match draw(st.sampled_from(["flip", "set", "word", "insert", "remove"])):
            case "flip":
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "set":
                data[at] = draw(st.sampled_from([0, 1, 127, 128, 255]) | st.integers(0, 255))
            case "word":
                data[at : at + 4] = draw(st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"]))
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "remove":
                del data[at : at + draw(st.integers(1, 8))]
        if not data:
            break
    return bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.booleans()) else bytes(data)


@SIZES
def test_picture_headers(times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_module, "MAX_PIXELS", 1_000_000)  # what a header may claim is allocated

    @cases("pictures", times)
    @given(damaged_pictures())
    def case(data: bytes) -> None:
        path = tmp_path / "picture"
        path.write_bytes(data)
        size = None
        with only_own_errors():
            size = image_size(path)
            assert min(size) > 0 and size[0] * size[1] <= image_module.MAX_PIXELS
        with only_own_errors():
            decoded = open_image(path)
            assert decoded.mode == "RGB" and (decoded.height, decoded.width) == size

    case()
