import hashlib
import pickle

import pytest

from vlmft.data.sources.jsonrows import read_json_rows
from vlmft.errors import DataError


def read(tmp_path, data, name="rows.json"):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_json_rows(path)


def refused(tmp_path, data, match, name="rows.json"):
    with pytest.raises(DataError, match=match) as caught:
        read(tmp_path, data, name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_list_keeps_rows_lines_and_ids(tmp_path):
    text = '[\n {"id": "x", "t": "a]b"},\n\n {"id": 7},\n {"id": null}, {"id": ""}, {"id": [1]}, 5]\n'
    rows = read(tmp_path, text)
    assert [rows.value(i) for i in range(len(rows))] == [
        {"id": "x", "t": "a]b"},
        {"id": 7},
        {"id": None},
        {"id": ""},
        {"id": [1]},
        5,
    ]
    assert rows.ids == ["x", "7", None, None, None, None]
    assert [rows.place(i).rpartition(":")[2] for i in range(4)] == ["2, row 0", "4, row 1", "5, row 2", "5, row 3"]
    assert rows.sha256 == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.NDJSON"])
def test_json_lines(tmp_path, name):
    rows = read(tmp_path, '{"id": 1}\r\n\n  {"t": "\u2028 \u00e9 \U0001f600"}\n', name)
    assert [rows.value(i) for i in range(len(rows))] == [{"id": 1}, {"t": "\u2028 \u00e9 \U0001f600"}]
    assert rows.place(1) == f"{tmp_path / name}:3, row 1"


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path):
    assert len(read(tmp_path, b"\xef\xbb\xbf[{}]")) == 1
    assert len(read(tmp_path, b"\xef\xbb\xbf{}\n{}", "rows.jsonl")) == 2
    refused(tmp_path, "[{}]".encode("utf-16"), "is UTF-16; save it as UTF-8")


def test_other_encodings_are_refused(tmp_path):
    refused(tmp_path, b'[\n"caf\xe9"]', r"rows\.json:2: byte 6 \(0xe9\) is not UTF-8")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "is empty; expected a JSON list"),
        (" \n", "is empty; expected a JSON list"),
        ("[]", "holds no sample; expected at least one"),
        ('{"a": 1}', r"holds a JSON object; expected a list of samples"),
        ('"a"', "holds a JSON string"),
        ("null", "holds a JSON null"),
        ('{"a": 1}\n{"a": 2}\n', r"looks like JSON Lines; give it a name that ends in \.jsonl"),
        ('[{"a": 1}\n {"a": 2}]', "expected a comma or the closing ] at line 2, column 2"),
        ('[\n{"a": 1},\n]', "a comma stands before the closing ]; remove it at line 3, column 1"),
        ('[{"a": 1}] x', "there is more after the closing ] at line 1, column 12"),
        ('[{"a": 1},\n # more\n]', "Expecting value at line 2, column 2"),
        ('[{"a": 1}', "expected a comma or the closing ] at line 1, column 10"),
        ("[", "Expecting value at line 1, column 2"),
        ('[{"a": "x\n"}]', "Invalid control character .* at line 1, column 10"),
        ("[\n" + "[" * 100_000, "is not usable JSON: .*recursion.*, in the value that starts at line 2"),
        ("[" + "1" * 5000 + "]", "is not usable JSON: .*digits.*, in the value that starts at line 1"),
    ],
)
def test_broken_lists(tmp_path, text, match):
    refused(tmp_path, text, match)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("\n\n", "holds no sample"),
        ('{"a": 1}\n{"a": }\n', "is not valid JSON: Expecting value at line 2, column 7"),
        ('{"a": 1} {"a": 2}\n', r"rows\.jsonl:1: there is more after the line's object"),
        ('[\n{"a": 1}\n]', r"holds a JSON list, not one object a line; give it a name that ends in \.json"),
    ],
)
def test_broken_lines(tmp_path, text, match):
    refused(tmp_path, text, match, "rows.jsonl")


def test_rows_travel_to_other_processes(tmp_path):
    rows = pickle.loads(pickle.dumps(read(tmp_path, '[{"id": 1}, {"id": 2}]')))
    assert rows.value(1) == {"id": 2}


def test_an_unreadable_file(tmp_path):
    with pytest.raises(DataError, match="cannot be read: Is a directory; give data_path a file"):
        read_json_rows(tmp_path)
