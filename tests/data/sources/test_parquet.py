import pyarrow as pa
import pytest

from tests.data.sources.containers import picture, write_parquet
from vlmft.data.hashing import hash_texts
from vlmft.data.sources import parquet
from vlmft.data.sources.find_shards import Shard
from vlmft.data.sources.parquet import ParquetOpener
from vlmft.errors import DataError


def opened(path, **columns):
    return ParquetOpener("mine", tuple(columns.items())).open(Shard(path, path.stem))


def refused(path, match, **columns):
    with pytest.raises(DataError, match=match) as caught:
        opened(path, **columns)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.fixture(autouse=True)
def nothing_decoded(monkeypatch):
    monkeypatch.setattr(parquet, "_decoded", parquet._Decoded())


def test_rows_places_and_ids(tmp_path):
    rows = [{"id": f"r{i}" if i % 2 else None, "n": i, "image": {"bytes": b"%d" % i, "path": None}} for i in range(25)]
    table = opened(write_parquet(tmp_path / "s.parquet", rows))
    assert [table.value(row) for row in range(25)] == rows
    assert [table.own_id(row) for row in (0, 1, 24)] == ["s/0", "r1", "s/24"]
    assert table.place(3) == f"{tmp_path}/s.parquet, row 3"
    assert table.id_hashes("mine", [1, 24]).tolist() == hash_texts(["mine/r1", "mine/s/24"]).tolist()
    assert table.id_hashes("other", [1]).tolist() == hash_texts(["other/r1"]).tolist()
    assert table.fingerprint()["rows"] == 25


def test_ids_of_every_type(tmp_path):
    for number, (value, expected) in enumerate(
        [(2**63 - 1, "9223372036854775807"), (1.5, "1.5"), (True, "s/0"), ("", "s/0"), ([1], "s/0")]
    ):
        folder = tmp_path / str(number)
        assert opened(write_parquet(folder / "s.parquet", [{"id": value}])).own_id(0) == expected
    assert opened(write_parquet(tmp_path / "s.parquet", [{"n": 1}])).own_id(0) == "s/0"


def test_columns_get_the_names_of_the_format(tmp_path):
    path = write_parquet(tmp_path / "s.parquet", [{"uuid": "x", "jpg": b"1", "id": 7}])
    table = opened(path, id="uuid", image="jpg", number="id")
    assert table.value(0) == {"id": "x", "image": b"1", "number": 7}
    assert table.own_id(0) == "x"
    refused(path, r"has no column 'uid', which columns\.id names; did you mean uuid\?", id="uid")
    refused(path, r"has both 'id' and 'uuid', which columns\.id would give the same name; rename the other", id="uuid")
    refused(path, r"columns names one column twice: \{'a': 'jpg', 'b': 'jpg'\}", a="jpg", b="jpg")
    refused(path, r"has no column 'zzz', which columns\.x names; it has uuid, jpg, id", x="zzz")


def test_files_that_cannot_be_read(tmp_path):
    path = write_parquet(tmp_path / "s.parquet", [{"n": i} for i in range(100)])
    whole = path.read_bytes()
    for data in (b"", b"PAR1", whole[:-20], whole[: len(whole) // 2], b"x" * 1000):
        path.write_bytes(data)
        refused(path, "is no Parquet file, or damaged: .*; make or copy it again")


def test_a_damaged_page_is_an_error(tmp_path):
    path = write_parquet(tmp_path / "s.parquet", [{"t": f"text {i}" * 50} for i in range(10)])
    data = bytearray(path.read_bytes())
    data[100:400] = b"\xff" * 300
    path.write_bytes(data)
    table = opened(path)
    with pytest.raises(DataError, match=r"s\.parquet: is no Parquet file, or damaged"):
        table.value(0)


def test_a_large_row_group_is_refused(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "s.parquet", [{"t": picture().hex()} for _ in range(20)], group=20)
    monkeypatch.setattr(parquet, "MAX_GROUP_BYTES", 100)
    refused(path, r"row group 0 has 20 rows in 0\.0 GB; at most 0\.0 GB are read at once: write it with a smaller row_")


def test_a_file_that_changes_is_an_error(tmp_path):
    path = write_parquet(tmp_path / "s.parquet", [{"n": i} for i in range(20)])
    table = opened(path)
    assert table.value(0) == {"n": 0}
    write_parquet(path, [{"n": i} for i in range(25)])
    with pytest.raises(DataError, match=r"s\.parquet: has changed since it was opened"):
        table.value(19)


def test_few_row_groups_are_kept_decoded(tmp_path, monkeypatch):
    rows = [{"n": i, "b": bytes([i]) * 1000} for i in range(100)]
    table = opened(write_parquet(tmp_path / "s.parquet", rows))
    read = []
    monkeypatch.setattr(
        parquet, "_read_group", lambda *args, then=parquet._read_group: read.append(args[2]) or then(*args)
    )
    monkeypatch.setattr(parquet, "KEPT_BYTES", 32_000)  # three groups of ten rows
    for row in [0, 5, 10, 20, 3, 11, 29]:
        assert table.value(row) == rows[row]
    assert read == [0, 1, 2]
    table.value(30)
    table.value(99)
    assert read == [0, 1, 2, 3, 9]
    assert table.value(25) == rows[25]
    assert read == [0, 1, 2, 3, 9], "the one that was asked for last is kept longest"
    table.value(0)
    assert read[5:] == [0]
    assert sum(size for _, size in parquet._decoded.tables.values()) <= 32_000
    monkeypatch.setattr(parquet, "KEPT_BYTES", 10)
    table.value(50)
    table.value(51)
    assert read[6:] == [5], "one that is larger than that is kept alone"
    assert len(parquet._decoded.tables) == 1


def test_a_window_is_what_can_be_kept(tmp_path, monkeypatch):
    rows = [{"b": bytes([i]) * 1000} for i in range(100)]
    table = opened(write_parquet(tmp_path / "s.parquet", rows))
    monkeypatch.setattr(parquet, "KEPT_BYTES", 40_000)
    assert 10 <= table.window <= 30
    monkeypatch.setattr(parquet, "KEPT_BYTES", 10)
    assert table.window == 1
    empty = write_parquet(tmp_path / "empty.parquet", [], schema=pa.schema({"b": pa.binary()}))
    assert (len(opened(empty)), opened(empty).window) == (0, None)
