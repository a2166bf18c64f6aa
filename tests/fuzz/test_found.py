"""What fuzzing found, each kept as a case of its own."""

import json
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support import literally, noise, tiny_processor
from vlmft.config.files import read_mapping
from vlmft.data import LLaVADataset
from vlmft.data.media.image import image_size, open_image
from vlmft.data.problems import SampleError
from vlmft.encoding.chat import ChatFormat
from vlmft.errors import ConfigError, DataError, PreemptedError
from vlmft.types import Message, Sample

TURNS = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: !!int x", "invalid literal for int() with base 10: 'x'"),
        ("a: !!float ''", "string index out of range"),
        ("a: !!bool x", "'x'"),
        ("a: !!timestamp x", "'NoneType' object has no attribute 'groupdict'"),
        ("a: !!timestamp 2001-99-99", "month must be in 1..12"),
        ("a: !!map x", "not enough values to unpack"),
        ("a: " + "9" * 5000, "Exceeds the limit (4300 digits)"),
        ("{a: " * 2000, "it is nested too deeply"),
    ],
)
def test_yaml_values_that_its_loader_trips_over(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=literally(f"{path}: holds a value that cannot be read: {reason}")):
        read_mapping(path)


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize("text", [BOMB, "a: &a [*a]", "a: &a {b: *a}"], ids=["bomb", "list", "mapping"])
def test_yaml_aliases_without_end(text: str, tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    start = time.monotonic()
    with pytest.raises(
        ConfigError, match=literally(f"{path}: its aliases (*name) repeat values more than 10000 times")
    ):
        read_mapping(path)
    assert time.monotonic() - start < 10


def test_yaml_aliases_that_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: a & b}\n")
    assert read_mapping(path) == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": "a & b"}}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "\ud800", "conversations": TURNS}, r"its id holds half a character (\ud800) at position 0; write both"),
        ({"image": "\ud800.png", "conversations": TURNS}, r"its 'image' holds half a character (\ud800) at position 0"),
        ({"\ud800": 1}, r"it has no 'conversations' (its keys: \ud800)"),
    ],
    ids=["id", "image", "key"],
)
def test_half_a_character(row: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([row]))
    source = LLaVADataset(data_path=file).open("mine")
    for read in (source.check_row, source.__getitem__):
        with pytest.raises(SampleError, match=literally(f"mine/0 ({file}:1, row 0): {message}")) as raised:
            read(0)
        assert raised.value.sample_id == "mine/0"
        assert str(raised.value).encode()


@pytest.fixture
def warned(tmp_path: Path) -> Path:
    """A TIFF whose second half is missing, of which Pillow warns."""
    path = tmp_path / "a.tiff"
    noise(16, 24).save(path)
    data = path.read_bytes()
    path.write_bytes(data[:60] + data[62:])
    return path


def test_pillow_warnings_stay_inside(warned: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            Image.open(warned).load()
        for read in (image_size, open_image):
            with pytest.raises(DataError, match=literally(str(warned))):
                read(warned)


def test_a_signal_while_a_template_renders_is_no_fault_of_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = ChatFormat(tiny_processor(), tiny_processor().tokenizer)

    def stopped(*_: Any, **__: Any) -> str:
        raise PreemptedError("SIGTERM received; stopped at once")

    monkeypatch.setattr(chat, "_apply", stopped)
    sample = Sample("mine/0", (Message("user", ("Q",)), Message("assistant", ("A",))))
    with pytest.raises(PreemptedError):
        chat.render(sample)
