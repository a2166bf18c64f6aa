import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from tests.data.sources.containers import write_tar
from vlmft.data.hashing import hash_texts
from vlmft.data.sources.find_shards import Shard
from vlmft.data.sources.tars import TarOpener
from vlmft.errors import DataError

LONG = "a" * 150


def opened(path: Path, prompt: str | None = None, ignore: tuple[str, ...] = ()):
    return TarOpener("mine", prompt, ignore).open(Shard(path, path.stem))


def refused(path: Path, match: str, **keys) -> None:
    with pytest.raises(DataError, match=match) as caught:
        opened(path, **keys)
    assert str(caught.value).startswith(f"{path}: ")


def test_rows_places_and_ids(tmp_path):
    members = {
        "./x/1.jpg": b"one", "./x/1.json": '{"t": 1}', "x/2.json": '{"t": 2}', "x/2.b.jpg": b"b", "x/2.a.jpg": b"a",
        f"{LONG}.txt": "long",
    }  # fmt: skip
    table = opened(write_tar(tmp_path / "s.tar", members))
    assert [table.value(row) for row in range(len(table))] == [
        {"t": 1, "image": b"one"},
        {"t": 2, "image": [b"a", b"b"]},
        {"text": "long"},
    ]
    assert [table.own_id(row) for row in range(3)] == ["s/x/1", "s/x/2", f"s/{LONG}"]
    assert table.place(1) == f"{tmp_path}/s.tar:x/2, row 1"
    assert table.id_hashes("mine", [2, 0]).tolist() == hash_texts([f"mine/s/{LONG}", "mine/s/x/1"]).tolist()
    assert table.id_hashes("other", [0]).tolist() == hash_texts(["other/s/x/1"]).tolist()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar(tmp_path, form):
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=form) as tar:
        folder = tarfile.TarInfo("deep")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number in range(3):
            member = tarfile.TarInfo(f"deep/{'n' * 60}é{number}.txt")
            member.size = 600 + number
            tar.addfile(member, io.BytesIO(bytes([65 + number]) * member.size))
    table = opened(path)
    assert [table.value(row)["text"] for row in range(3)] == ["A" * 600, "B" * 601, "C" * 602]
    assert table.own_id(2) == f"s/deep/{'n' * 60}é2"


def test_a_tar_without_samples_has_no_rows(tmp_path):
    assert len(opened(write_tar(tmp_path / "s.tar", {}))) == 0


def test_members_of_other_kinds_are_named_and_left_out_on_request(tmp_path):
    path = write_tar(tmp_path / "s.tar", {"1.npy": b"x", "1.URL": b"y", "1.txt": "t"})
    refused(
        path, r"holds members that end in \.npy, \.url; expected pictures.*: leave others out by ignore: \[npy, url\]"
    )
    refused(path, r"holds members that end in \.npy; ", ignore=("url",))
    assert opened(path, ignore=("npy", ".url")).value(0) == {"text": "t"}


def test_what_the_entry_asks_of_texts(tmp_path):
    path = write_tar(tmp_path / "s.tar", {"1.txt": "A kite."})
    assert opened(path, prompt="What?").value(0)["conversations"][1] == {"from": "gpt", "value": "A kite."}


@pytest.mark.parametrize("name", ["README", "deep/.hidden.jpg", "._1.jpg", "deep/x"])
def test_files_that_belong_to_no_sample(tmp_path, name):
    refused(write_tar(tmp_path / "s.tar", {"1.txt": "t", name: b"x"}), rf"{name} belongs to no sample; expected <key>")


def test_a_file_that_is_there_twice(tmp_path):
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("1.txt"))
    refused(path, r"holds 1\.txt twice; make or copy it again, with each file once")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_what_is_no_file(tmp_path, kind):
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("1.jpg")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    refused(path, r"1\.jpg is a link or device; pack plain files")


def test_compressed_tars(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", {"1.txt": "t"}).read_bytes()
    (tmp_path / "s.tar").write_bytes(gzip.compress(whole))
    refused(tmp_path / "s.tar", "is compressed; members are read at their offsets: unpack it with gunzip")
    refused(write_tar(tmp_path / "x.tar", {"1.txt": "t"}, "w:xz"), "unpack it with unxz")
    refused(write_tar(tmp_path / "b.tar", {"1.txt": "t"}, "w:bz2"), "unpack it with bunzip2")


def test_damaged_tars(tmp_path):
    path = tmp_path / "s.tar"
    whole = write_tar(path, {"1.txt": "t" * 700, "2.txt": "u" * 700}).read_bytes()
    header = 512 + 1024
    for length, match in [
        (0, "is damaged or cut off after its start: empty file; make or copy it again"),
        (100, "is damaged or cut off after its start"),
        (600, r"is damaged or cut off after 1\.txt: unexpected end of data"),
        (header, r"is damaged or cut off after 1\.txt, at byte 1536: its end is not marked"),
        (header + 100, r"is damaged or cut off after 1\.txt, at byte 1536: its end is not marked"),
        (2 * header - 100, r"is damaged or cut off after 2\.txt: unexpected end of data"),
        (2 * header, r"is damaged or cut off after 2\.txt, at byte 3072: its end is not marked"),
    ]:
        path.write_bytes(whole[:length])
        refused(path, match)
    path.write_bytes(whole[: header + 5] + b"\xff" + whole[header + 6 :])
    refused(path, r"is damaged or cut off after 1\.txt, at byte 1536")
    path.write_bytes(b"x" * 2048)
    refused(path, "is damaged or cut off after its start")
    path.write_bytes(whole + whole)
    refused(path, "goes on after its end; tars that were joined have to be packed anew")
    path.write_bytes(whole)
    assert len(opened(path)) == 2


def test_names_that_are_not_utf8(tmp_path):
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("é.txt"))
    refused(path, r"the name '\\udce9\.txt' is not UTF-8; rename the file")


def test_the_fingerprint_follows_names_and_sizes(tmp_path):
    def of(members):
        return opened(write_tar(tmp_path / "s.tar", members)).fingerprint()

    one = of({"1.txt": "t", "2.txt": "t"})
    assert one["rows"] == 2
    assert of({"1.txt": "u", "2.txt": "t"}) == one, "the content itself is not read"
    assert of({"1.txt": "tt", "2.txt": "t"})["sha256"] != one["sha256"]
    assert of({"1.txt": "t", "3.txt": "t"})["sha256"] != one["sha256"]


def test_a_tar_that_changes_is_an_error(tmp_path):
    path = write_tar(tmp_path / "s.tar", {"1.txt": "t"})
    table = opened(path)
    os.truncate(path, 700)
    with pytest.raises(DataError, match=r"s\.tar: has changed since it was opened \(10240 bytes then, 700 now\)"):
        table.value(0)


def test_an_outline_has_sizes_in_place_of_media(tmp_path):
    table = opened(write_tar(tmp_path / "s.tar", {"1.jpg": b"x" * 1234, "1.json": '{"t": 1}'}))
    assert table.outline(0) == {"t": 1, "image": b"1234"}
