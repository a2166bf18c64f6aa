import json
import os
from pathlib import Path

import pytest

from tests.support import literally
from vlmft.annotation.journal import open_journal
from vlmft.errors import ConfigError, DataError, StorageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new/rows.jsonl"


def test_what_is_added_is_there_the_next_time(path: Path) -> None:
    with open_journal(path) as journal:
        assert (journal.rows, journal.cut) == ([], 0)
        journal.append([{"a": "é"}, {"a": "half \ud800"}])
    with open_journal(path) as journal:
        assert journal.rows == [{"a": "é"}, {"a": "half \ud800"}]
        assert journal.places == [f"{path}:1", f"{path}:2"]
        journal.append([{"a": "b"}])
        journal.sort(lambda row: str(row["a"]))
    assert [json.loads(line)["a"] for line in path.read_text().splitlines()] == ["b", "half \ud800", "é"]


def test_an_empty_one_is_removed(path: Path) -> None:
    with open_journal(path):
        assert path.exists()
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "rows", "cut"),
    [
        ('{"a": 1}\n{"a": 2', [1], 7),
        ('{"a": 1}\n\n{"a": 2}', [1, 2], 0),  # as people end a file
        ('{"a": 1}\r\n  ', [1], 0),
        ('{"a": "\u2028"}\n{"a', ["\u2028"], 3),
    ],
)
def test_a_last_line_is_ended_or_cut_off(path: Path, text: str, rows: list[object], cut: int) -> None:
    path.parent.mkdir()
    path.write_bytes(text.encode())
    with open_journal(path) as journal:
        assert ([row["a"] for row in journal.rows], journal.cut) == (rows, cut)
        journal.append([{"a": 3}])
    with open_journal(path) as journal:
        assert [row["a"] for row in journal.rows] == [*rows, 3]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"a": 1}\n[2]\n', ":2: holds a list; expected an object a line"),
        (b'{"a": 1\n{"a": 2}\n', ":1: is no valid JSON: Expecting ',' delimiter: line 1 column 8 (char 7); mend it"),
        (b'{"a": "\xff"}\n', ": byte 7 is not UTF-8; save the file as UTF-8"),
    ],
)
def test_a_damaged_one_is_left_as_it_is(path: Path, data: bytes, said: str) -> None:
    path.parent.mkdir()
    path.write_bytes(data)
    with pytest.raises(DataError, match=literally(f"{path}{said}")), open_journal(path):
        pass
    assert path.read_bytes() == data


def test_only_one_may_write(path: Path) -> None:
    message = literally(f"{path}: another command is writing it; wait for it, or stop it")
    with open_journal(path) as journal:
        journal.append([{"a": 1}])
        with pytest.raises(ConfigError, match=message), open_journal(path):
            pass
    assert path.exists()


def test_a_full_device_leaves_no_half_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_journal(path) as journal:
        journal.append([{"a": 1}])
        write = os.write
        monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:4]))
        with pytest.raises(StorageError, match=literally(f"{path}: cannot be written: the device is full; ")):
            journal.append([{"a": 2}])
    assert path.read_text() == '{"a": 1}\n'


def test_one_that_cannot_be_opened(tmp_path: Path) -> None:
    message = literally(f"{tmp_path}: cannot be opened: Is a directory")
    with pytest.raises(StorageError, match=message), open_journal(tmp_path):
        pass
