import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import literally
from vlmft.checking.quarantine import Quarantine
from vlmft.errors import StorageError


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "quarantine.jsonl"


@pytest.fixture
def three(path: Path) -> Path:
    """What a run has left that left out a sample at the steps 1, 2 and 2."""
    quarantine = Quarantine(path, 0)
    quarantine.add(1, "a/x", "a/x (/data/a: b.json:7, row 5): its picture (cut.png, row 9): is cut")
    quarantine.add(2, "a/y", "a/y: was not read within 1 s")
    quarantine.add(2, "a/é", "a/é (/a.json:1, row 0): bad")
    quarantine.add(3, "a/x", "again")
    quarantine.close()
    return path


def test_each_sample_stands_there_once_with_its_place(three: Path) -> None:
    assert lines(three) == [
        {
            "id": "a/x",
            "place": "/data/a: b.json:7, row 5",
            "reason": "a/x (/data/a: b.json:7, row 5): its picture (cut.png, row 9): is cut",
            "step": 1,
        },
        {"id": "a/y", "place": None, "reason": "a/y: was not read within 1 s", "step": 2},
        {"id": "a/é", "place": "/a.json:1, row 0", "reason": "a/é (/a.json:1, row 0): bad", "step": 2},
    ]


def test_there_is_no_file_where_nothing_is_left_out(path: Path) -> None:
    Quarantine(path, 0).close()
    assert not path.exists()


def test_a_resumed_run_goes_on_without_duplicates(three: Path) -> None:
    whole = three.read_bytes()
    resumed = Quarantine(three, 1)
    assert [line["id"] for line in lines(three)] == ["a/x"]
    for step, name in ((1, "a/x"), (2, "a/y"), (2, "a/é")):
        resumed.add(
            step, name, next(line["reason"] for line in map(json.loads, whole.splitlines()) if line["id"] == name)
        )
    resumed.close()
    assert three.read_bytes() == whole


def test_a_run_that_begins_anew_leaves_nothing_of_the_old(three: Path) -> None:
    Quarantine(three, 0).close()
    assert not three.exists()


def test_a_line_that_a_killed_run_left_unfinished_is_cut(three: Path) -> None:
    whole = three.read_bytes()
    three.write_bytes(whole + b'{"id": "a/z", "pl')
    Quarantine(three, 2).close()
    assert three.read_bytes() == whole


@pytest.mark.parametrize("damage", [b"nothing\n", b'{"id": "a"}\n', b"[1]\n"])
def test_a_damaged_file_is_named(path: Path, damage: bytes) -> None:
    path.write_bytes(damage)
    with pytest.raises(StorageError, match=literally(f"{path} is damaged (")):
        Quarantine(path, 3)


def test_a_file_that_cannot_be_written(path: Path) -> None:
    path.mkdir()
    with pytest.raises(StorageError, match=literally(f"cannot write {path}: ")):
        Quarantine(path, 0)
