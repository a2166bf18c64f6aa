from pathlib import Path

import pytest

from vlmft.data.sources.find_shards import find_shards
from vlmft.errors import DataError

TARS = (".tar",)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("set/b.tar", "set/a.TAR", "set/README.md", "set/.hidden.tar", "set/deep/a.tar", "set/deep/c.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path / "set"


def test_a_folder(folder):
    found = find_shards(folder, TARS)
    assert [(shard.path.name, shard.label) for shard in found.shards] == [("a.TAR", "a"), ("b.tar", "b")]
    assert (found.path, found.folder, found.suffix) == (folder, folder, ".tar")


def test_a_pattern_leaves_its_open_folders_in_the_labels(folder):
    found = find_shards(folder / "*" / "*.tar", TARS)
    assert [shard.label for shard in found.shards] == ["deep/a", "deep/c"]
    assert (found.path, found.folder) == (folder / "*" / "*.tar", folder)
    assert [shard.label for shard in find_shards(folder / "deep" / "[ab].tar", TARS).shards] == ["a"]
    assert [shard.label for shard in find_shards(folder / "**" / "*.tar", TARS).shards] == ["b", "deep/a", "deep/c"]
    assert [shard.label for shard in find_shards(folder / "*", TARS).shards] == ["a", "b"]


def test_one_file_and_a_list(folder):
    assert [shard.label for shard in find_shards(folder / "b.tar", TARS).shards] == ["b"]
    found = find_shards([folder / "deep" / "c.tar", folder / "b.tar"], TARS)
    assert [shard.label for shard in found.shards] == ["b", "c"]
    assert found.path == found.folder == folder


def refused(paths, match, suffixes=TARS):
    with pytest.raises(DataError, match=match):
        find_shards(paths, suffixes)


def test_what_cannot_be_found(folder):
    refused([], "the list of files is empty; name at least one")
    refused(folder / "none.tar", r"none\.tar does not exist; give a folder, a pattern with \*, or a list of files$")
    refused(folder / "x-{000..009}.tar", r"does not exist; .*; write \* in place of \{\.\.\.\}")
    refused(folder / "x-*.tar", r"x-\*\.tar holds none of the files sought; expected files that end in \.tar$")
    refused(folder, r"set holds none .*; expected files that end in \.jsonl, \.ndjson$", (".jsonl", ".ndjson"))
    refused([folder / "b.tar", folder / "x.tar"], r"set/x\.tar is no file; mend the list")
    refused([folder / "x.tar", folder / "y.tar"], r"set/x\.tar, .*y\.tar are no file; mend")
    refused([folder / "b.tar", folder / "README.md"], r"README\.md cannot be read as shards; expected .* \.tar")


@pytest.mark.parametrize("name", ["c.tar.gz", "c.tgz", "c.tar.zst", "c.TAR.GZ"])
def test_compressed_files_are_not_left_out_in_silence(folder, name):
    (folder / name).write_text("")
    for paths in (folder, folder / "*", [folder / name]):
        refused(paths, rf"set/{name}: compressed; rows are read at their offsets: unpack, as gunzip does")


def test_other_compressed_files_are_of_no_concern(folder):
    (folder / "notes.txt.gz").write_text("")
    assert len(find_shards(folder, TARS).shards) == 2


def test_files_of_two_kinds(folder):
    (folder / "rows.jsonl").write_text("")
    refused(
        folder,
        r"set holds files of the kinds \.jsonl, \.tar; choose by a pattern, such as \*\.jsonl",
        (".jsonl", ".tar"),
    )


def test_files_that_would_give_the_same_ids(folder):
    match = "would give their rows the same ids; rename one, or choose them by a pattern"
    refused([folder / "a.TAR", folder / "deep" / "a.tar"], rf"set/a\.TAR and .*deep/a\.tar {match}")
    refused([folder / "b.tar", folder / "b.tar"], match)
    (folder / "link.tar").symlink_to(folder / "b.tar")
    refused(folder, rf"set/b\.tar and .*set/link\.tar {match}")
