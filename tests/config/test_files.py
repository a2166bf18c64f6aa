from pathlib import Path

import pytest

from vlmft.config.files import read_mapping
from vlmft.errors import ConfigError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.yaml"


def test_interpolations_stay_as_written(path: Path) -> None:
    path.write_text("a: ${b}\nb: 1e-4\n")
    assert read_mapping(path) == {"a": "${b}", "b": 1e-4}


def test_an_empty_file_is_an_empty_mapping(path: Path) -> None:
    path.write_text("# nothing yet\n")
    assert read_mapping(path) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2\n", r"file\.yaml:2:2: bad YAML: .*expected ',' or '\]'"),
        ("a: 1\nb: 2\na: 3\n", r"file\.yaml:3:1: bad YAML: found duplicate key a"),
        ("- a\n", r"file\.yaml: should be a mapping .*found a list"),
        ("a: ${b\n", r"file\.yaml: .*"),
        ("a: !!python/object:os.system x\n", r"file\.yaml:1:4: bad YAML: could not determine a constructor"),
        ("a: \x07\n", r"file\.yaml: bad YAML: .*special characters are not allowed"),
        ("3\n", r"file\.yaml: .*"),
    ],
)
def test_bad_text_is_named_with_its_place(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_mapping(path)


def test_other_encodings_are_refused(path: Path) -> None:
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(ConfigError, match=r"file\.yaml: is not UTF-8 text"):
        read_mapping(path)


def test_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"file\.yaml: cannot be read: No such file"):
        read_mapping(path)
