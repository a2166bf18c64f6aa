import gc
import hashlib
import json
import os
import pickle
import tracemalloc

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.making import qa
from vlmft.data.hashing import hash_texts
from vlmft.data.sources import jsonlist, jsonrows, jsonscan
from vlmft.data.sources.jsonrows import read_json_rows
from vlmft.errors import DataError

# Whole values, and pieces that break a file or that one of the two parsers alone would read.
VALUES = [
    b'{"id": "x\xc3\xa9"}', b'{"id": 7, "t": "\xf0\x9f\x98\x80 \xe2\x80\xa8"}', b'{"id": 123456789012345678901}',
    b'{"id": 1.50}', b'{"id": -0}', b'{"id": 1e5}', b'{"id": true}', b'{"id": ""}', b'{"id": 1, "id": 2}',
    b'{"id": "\\ud800"}', b'{"id": NaN}', b'{"id":"\\ud83d\\ude00"}', b"[1, 2]", b"[]", b"null", b"12", b"1e-9",
    b"1e999", b"9" * 400, b'"\x7f"', b"[" * 600 + b"]" * 600,
]  # fmt: skip
PIECES = VALUES + [
    b"[", b"]", b"{", b"}", b",", b":", b'"', b"-", b" ", b"\n", b"\r", b"\t", b"\xff", b"\x00", b"\\ud800",
    b"\xc2\xa0", b"\xef\xbb\xbf",
]  # fmt: skip
CHUNKS = st.sampled_from([1, 2, 3, 7, 50, 2**22])
MANY = settings(
    max_examples=200, derandomize=True, database=None, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


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
    assert [rows.own_id(i) for i in range(6)] == ["x", "7", None, None, None, None]
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


def read_at_once(monkeypatch, size):
    for module in (jsonscan, jsonlist):
        monkeypatch.setattr(module, "CHUNK", size)


def as_text(value):
    """NaN equals itself here."""
    return repr(value)


@MANY
@given(st.lists(st.tuples(st.sampled_from([b"", b" ", b"\n", b"\r\n"]), st.sampled_from(VALUES)), min_size=1), CHUNKS)
def test_a_list_is_what_the_standard_library_reads(tmp_path, monkeypatch, items, chunk):
    read_at_once(monkeypatch, chunk)
    data = b"[" + b",".join(blank + value + blank for blank, value in items) + b"]"
    rows = read(tmp_path, data)
    assert [as_text(rows.value(i)) for i in range(len(rows))] == [as_text(value) for value in json.loads(data)]
    at = 0
    for i, (_, value) in enumerate(items):
        at = data.index(value, at)
        before = data.count(b"\n", 0, at)
        assert rows.place(i).endswith(f"rows.json:{before + 1}, row {i}")
        at += len(value)


@MANY
@given(st.lists(st.sampled_from(VALUES + [b"", b" \r"]), min_size=1), CHUNKS)
def test_lines_are_what_the_standard_library_reads(tmp_path, monkeypatch, lines, chunk):
    read_at_once(monkeypatch, chunk)
    expected = [(number, json.loads(line)) for number, line in enumerate(lines, start=1) if line.strip()]
    if not expected:
        return refused(tmp_path, b"\n".join(lines), "holds no sample", "rows.jsonl")
    rows = read(tmp_path, b"\n".join(lines), "rows.jsonl")
    assert [as_text(rows.value(i)) for i in range(len(rows))] == [as_text(value) for _, value in expected]
    ids = [value.get("id") if isinstance(value, dict) else None for _, value in expected]
    texts = [None if isinstance(own, bool | None) or own in ("", "\ud800") else str(own) for own in ids]
    assert [rows.own_id(i) for i in range(len(rows))] == texts
    assert [rows.place(i) for i in range(len(rows))] == [
        f"{rows.path}:{n}, row {i}" for i, (n, _) in enumerate(expected)
    ]


@MANY
@given(
    st.lists(st.sampled_from(PIECES), max_size=9).map(b"".join), CHUNKS, st.sampled_from(["rows.json", "rows.jsonl"])
)
def test_what_is_wrong_does_not_depend_on_how_much_is_read_at_once(tmp_path, monkeypatch, data, chunk, name):
    def outcome(size):
        read_at_once(monkeypatch, size)
        try:
            rows = read(tmp_path, data, name)
        except DataError as error:
            # An encoding is complained of as soon as it is met.
            return "is not UTF-8" if "is not UTF-8" in str(error) or b"\xff" in data else str(error)
        return [(as_text(rows.value(i)), rows.own_id(i), rows.place(i)) for i in range(len(rows))]

    assert outcome(chunk) == outcome(2**22)


def test_whole_numbers_of_any_size_are_exact(tmp_path):
    rows = read(tmp_path, '{"id": 18446744073709551616, "t": 123456789012345678901}\n', "rows.jsonl")
    assert rows.value(0) == {"id": 2**64, "t": 123456789012345678901}
    assert rows.own_id(0) == "18446744073709551616"


def test_hashes_are_those_of_the_ids(tmp_path):
    rows = read(tmp_path, '[{"id": "x"}, {}, {"id": 7}, {"id": "\u00e9"}]')
    expected = hash_texts(["mine/x", "mine/1", "mine/7", "mine/\u00e9"]).tolist()
    assert rows.id_hashes("mine", range(4)).tolist() == expected
    named = read_json_rows(rows.path, "mine")
    assert named.id_hashes("mine", range(4)).tolist() == expected
    assert named.id_hashes("mine", [2, 0]).tolist() == [expected[2], expected[0]]
    assert named.id_hashes("mine", []).tolist() == []
    assert named.id_hashes("other", [0]).tolist() == hash_texts(["other/x"]).tolist()


def test_a_file_that_changes_is_an_error_and_no_garbage(tmp_path):
    rows = read(tmp_path, '[{"id": 1}, {"id": 2}]')
    rows.path.write_text('[{"id": 1}, {"id": 2}, {"id": 3}]')
    with pytest.raises(
        DataError, match=r"rows\.json: has changed since it was opened \(22 bytes then, 33 now\); leave"
    ):
        rows.value(0)
    rows = read(tmp_path, '[{"id": 1}, {"id": 2}]')
    os.utime(rows.path, ns=(0, 10**9))
    with pytest.raises(DataError, match=r"has changed since it was opened \(its time is another\)"):
        rows.value(0)
    rows = read(tmp_path, '[{"id": 1}, {"id": 2}]')
    rows.path.unlink()
    with pytest.raises(DataError, match=r"rows\.json: cannot be read: No such file"):
        rows.value(0)


def test_a_file_that_is_replaced_is_read_as_it_was(tmp_path):
    rows = read(tmp_path, '[{"id": 1}, {"id": 2}]')
    assert rows.value(0) == {"id": 1}
    (tmp_path / "new").write_text("[5]")
    (tmp_path / "new").rename(rows.path)
    assert rows.value(1) == {"id": 2}
    with pytest.raises(DataError, match=r"has changed since it was opened"):
        # What another process would find, which has not opened the file before.
        from vlmft.data.sources import reading

        reading._opened.cache_clear()
        rows.value(1)


@pytest.fixture
def kept(monkeypatch):
    """Every file is large enough for its index to be kept."""
    monkeypatch.setattr(jsonrows, "SMALL", -1)


def test_a_kept_index_gives_the_same_rows(tmp_path, kept, monkeypatch):
    text = '[\n {"id": "x", "t": "a]b"},\n\n {"id": 7},\n {"id": null}]\n'
    made = read(tmp_path, text)
    monkeypatch.setattr(jsonrows, "scan_list", None)  # from here on, nothing is scanned
    found = read_json_rows(made.path)
    for rows in (made, found, pickle.loads(pickle.dumps(made))):
        assert [rows.value(i) for i in range(3)] == [{"id": "x", "t": "a]b"}, {"id": 7}, {"id": None}]
        assert [rows.own_id(i) for i in range(3)] == ["x", "7", None]
        assert [rows.place(i).rpartition(":")[2] for i in range(3)] == ["2, row 0", "4, row 1", "5, row 2"]
        assert rows.sha256 == hashlib.sha256(text.encode()).hexdigest()
        assert rows.id_hashes("", range(3)).tolist() == hash_texts(["/x", "/7", "/2"]).tolist()


def test_what_travels_to_other_processes_is_small(tmp_path, kept):
    rows = read(tmp_path, json.dumps([{"id": i} for i in range(20_000)]))
    assert len(pickle.dumps(rows)) < 1000


def test_reading_keeps_nothing(dataset):
    source = dataset([qa(f"Question {i}?", id=f"row-{i}") for i in range(200)])

    def read_all(times):
        for number in range(times):
            source[number % 200]
        gc.collect()
        return len(gc.get_objects()), psutil.Process().memory_info().rss

    objects, memory = read_all(1000)
    objects_then, memory_then = read_all(10_000)
    assert objects_then - objects < 100
    assert memory_then - memory < 2 * 2**20


def test_scanning_holds_no_rows(tmp_path):
    line = json.dumps(qa("Q" * 900, id="x" * 30))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{line}\n" for _ in range(15_000)))
    tracemalloc.start()
    try:
        rows = read_json_rows(path)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 15e6
    assert held < 3e6 and peak < 14e6
    assert len(rows) == 15_000
