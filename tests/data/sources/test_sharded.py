import json
import multiprocessing
import os
import pickle
import tracemalloc
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.making import qa
from tests.data.sources.containers import picture, shown, write_lines, write_parquet, write_tar
from vlmft.config.spec import validate
from vlmft.data import LLaVADataset, ShardedDataset, WebDataset
from vlmft.data.hashing import hash_texts, id_hashes
from vlmft.data.mixture import Mixture, MixturePart
from vlmft.data.run_data import open_run_data
from vlmft.data.sources import index, indexing, parquet, reading, tars
from vlmft.data.sources.rows import RowSource
from vlmft.data.sources.sharded import ShardSet
from vlmft.data.split import refuse_overlap, split_holdout
from vlmft.errors import ConfigError, DataError, StorageError
from vlmft.types import Labels, Preference, Rated, Solution

KINDS = ["jsonl", "parquet", "tar"]
COLOURS = ["red", "green", "blue", "white"]
Write = Callable[..., ShardSet]


def row(number: int) -> dict[str, Any]:
    return qa(f"<image>\nQuestion {number}?", f"Answer {number}.", id=f"r{number}", image=f"{COLOURS[number % 4]}.png")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write rows as shards of the given sizes and return their entry."""
    folder = tmp_path / "set"
    for colour in COLOURS:
        folder.mkdir(exist_ok=True)
        (folder / f"{colour}.png").write_bytes(picture(colour))

    def make(kind: str, sizes: list[int], **keys: Any) -> ShardSet:
        first = 0
        for number, size in enumerate(sizes):
            write_shard(folder / f"s-{number:03d}.{kind}", range(first, first + size))
            first += size
        return (WebDataset if kind == "tar" else ShardedDataset)(data_path=folder, **keys)

    return make


def write_shard(path: Path, numbers: range) -> Path:
    rows = [row(number) for number in numbers]
    if path.suffix == ".jsonl":
        return write_lines(path, rows)
    if path.suffix == ".parquet":
        cells = [item | {"image": {"bytes": picture(item["image"][:-4]), "path": item["image"]}} for item in rows]
        return write_parquet(path, cells, group=4, schema=None if cells else _schema())
    members = {}
    for item in rows:
        members[f"{item['id']}.json"] = json.dumps(item)
        members[f"{item['id']}.png"] = picture(item["image"][:-4])
    return write_tar(path, members)


def _schema() -> Any:
    import pyarrow as pa

    turn = pa.struct({"from": pa.string(), "value": pa.string()})
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.schema({"id": pa.string(), "image": image, "conversations": pa.list_(turn)})


def ids(source: RowSource) -> list[str]:
    return [source.sample_id(row) for row in range(len(source))]


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def test_a_row_gives_the_sample_that_it_gives_in_a_plain_file(self, write, kind, tmp_path):
        source = write(kind, [3, 4]).open("mine")
        (tmp_path / "set" / "plain.json").write_text(json.dumps([row(number) for number in range(7)]))
        plain = LLaVADataset(data_path=tmp_path / "set" / "plain.json").open("mine")
        assert len(source) == len(plain) == 7
        assert [shown(source[number]) for number in range(7)] == [shown(plain[number]) for number in range(7)]
        expected = [f"s-{number // 3 if number < 6 else 1:03d}/" if kind == "tar" else "" for number in range(7)]
        assert [source[number].id for number in range(7)] == [f"mine/{e}r{n}" for n, e in enumerate(expected)]

    def test_hashes_are_those_of_the_ids(self, write, kind):
        source = write(kind, [3, 0, 5]).open("mine")
        expected = hash_texts(ids(source))
        assert id_hashes(source, range(8)).tolist() == expected.tolist()
        some = np.array([7, 0, 3, 2, 7])
        assert id_hashes(source, some).tolist() == expected[some].tolist()
        assert id_hashes(source, []).tolist() == []

    @pytest.mark.parametrize("sizes", [[8], [3, 0, 5], [1] * 8, [0, 0, 8, 0]])
    def test_shards_of_any_size(self, write, kind, sizes):
        source = write(kind, sizes).open("mine")
        assert list(source.shards) == sizes
        assert [shown(source[number])[0][1][1] for number in range(8)] == [f"Question {number}?" for number in range(8)]

    def test_nothing_but_empty_shards_is_refused(self, write, kind):
        with pytest.raises(DataError, match=r"^mine: data_path: .*/set: holds no sample; expected at least one"):
            write(kind, [0, 0]).open("mine")

    def test_every_row_comes_once_an_epoch_on_any_number_of_ranks(self, write, kind):
        source = write(kind, [9, 4, 0, 7, 1], shuffle_window=6).open("mine")
        mixed = Mixture([MixturePart(source, 1, np.arange(21))], seed=1)
        first = [mixed.read(mixed.at(position)).id for position in range(21)]
        second = [mixed.read(mixed.at(position)).id for position in range(21, 42)]
        assert Counter(first) == Counter(second) == Counter(ids(source))
        assert first != second and first != ids(source)
        for world in (2, 4):
            travelled = [pickle.loads(pickle.dumps(mixed)) for _ in range(world)]
            share = [[travelled[r].read(travelled[r].at(p)).id for p in range(r, 21, world)] for r in range(world)]
            assert [share[p % world][p // world] for p in range(21)] == first

    def test_a_held_out_share_does_not_come(self, write, kind):
        source = write(kind, [20, 20, 20]).open("mine")
        train, held = split_holdout(source, 0.3)
        assert 8 < len(held) < 28
        mixed = Mixture([MixturePart(source, 1, train)], seed=1)
        assert sorted(mixed.at(position).row for position in range(len(train))) == train.tolist()

    def test_content_that_is_held_out_is_found(self, write, kind, tmp_path):
        entry = write(kind, [3, 3])
        write_shard(tmp_path / "held" / f"h.{kind}", range(5, 7))
        held = {"e": entry.model_copy(update={"data_path": tmp_path / "held", "media_dir": tmp_path / "set"})}
        last = "mine/s-001/r5 = e/h/r5" if kind == "tar" else "mine/r5 = e/r5"
        with pytest.raises(DataError, match=f"^1 training samples are also held out .*: {last};"):
            open_run_data({"mine": entry}, held, 0, 0).check(0, 0)

    def test_only_the_index_of_a_shard_that_changes_is_made_anew(self, write, kind, tmp_path, monkeypatch):
        entry = write(kind, [3, 3])
        entry.open("mine")
        built: list[str] = []
        build_now = index.IndexOf.build_now
        monkeypatch.setattr(
            index.IndexOf, "build_now", lambda of, state=None: built.append(of.path.name) or build_now(of, state)
        )
        assert len(entry.open("mine")) == 6 and built == []
        write_shard(tmp_path / "set" / f"s-001.{kind}", range(3, 8))
        assert len(entry.open("mine")) == 8 and built == [f"s-001.{kind}"]

    def test_a_shard_that_changes_during_the_run_is_an_error(self, write, kind, tmp_path):
        source = write(kind, [3, 3]).open("mine")
        travelled = pickle.loads(pickle.dumps(source))
        write_shard(tmp_path / "set" / f"s-001.{kind}", range(3, 8))
        for held in (source, travelled):
            assert shown(held[0])
            with pytest.raises(DataError, match=rf"s-001\.{kind}: has changed since it was opened"):
                held[4]

    def test_what_travels_to_other_processes_is_small(self, write, kind):
        assert len(pickle.dumps(write(kind, [40] * 3).open("mine"))) < 4000

    def test_many_shards_take_few_descriptors(self, write, kind, monkeypatch):
        monkeypatch.setattr(indexing, "WORTH_PROCESSES", 2**40)
        source = write(kind, [1] * 90).open("mine")
        for number in range(90):
            assert source[number].messages
        reading._opened.cache_clear()
        before = len(os.listdir("/proc/self/fd"))
        for number in range(90):
            assert source[number].messages
        assert len(os.listdir("/proc/self/fd")) - before <= reading.MAX_OPEN

    def test_loader_processes_of_both_kinds_read_the_same(self, write, kind):
        source = write(kind, [5, 5]).open("mine")
        expected = [shown(source[number]) for number in range(10)]
        for method in ("fork", "spawn"):
            # Not a Pool, which replaces a process that dies for ever and never says so.
            with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
                assert pool.submit(_read_all, source).result(timeout=60) == expected


def _read_all(source: RowSource) -> list[Any]:
    return [shown(source[number]) for number in range(len(source))]


def test_every_damaged_shard_is_named_with_its_line_or_member(write, tmp_path):
    entry = write("jsonl", [3, 3, 3])
    for name in ("s-000.jsonl", "s-002.jsonl"):
        with (tmp_path / "set" / name).open("a") as file:
            file.write('{"id": \n')
    with pytest.raises(DataError) as caught:
        entry.open("mine")
    where = f"mine: data_path: {tmp_path}/set"
    assert caught.value.problems == (
        f"{where}/s-000.jsonl: is not valid JSON: Expecting value at line 4, column 8",
        f"{where}/s-002.jsonl: is not valid JSON: Expecting value at line 4, column 8",
    )
    entry = write("tar", [3, 3])
    os.truncate(tmp_path / "set" / "s-001.tar", 3000)
    with pytest.raises(DataError, match=rf"^{where}/s-001\.tar: is damaged or cut off after r4\.json"):
        entry.open("mine")


def test_a_bad_row_is_named_by_its_place_in_its_shard(write, tmp_path):
    entry = write("tar", [2, 2])
    write_tar(tmp_path / "set" / "s-001.tar", {"x.json": "{}", "x.png": picture(), "y.json": "[]", "y.png": b"1"})
    source = entry.open("mine")
    place = f"{tmp_path}/set/s-001.tar"
    with pytest.raises(DataError, match=rf"^mine/s-001/x \({place}:x, row 0\): it has no 'conversations'"):
        source[2]
    with pytest.raises(DataError, match=rf"^mine/s-001/y \({place}:y, row 1\): its \.json holds a list; expected"):
        source.check_row(3)


def test_a_picture_of_a_tar_is_named_by_its_place(write, tmp_path):
    (image,) = write("tar", [2]).open("mine")[1].images
    assert str(image.path) == f"{tmp_path}/set/s-000.tar:r1, row 1: picture 0"
    assert image.data == picture("green")


def test_ids_that_two_shards_share_are_refused(write, tmp_path, monkeypatch):
    entry = write("jsonl", [3, 3])
    write_shard(tmp_path / "set" / "s-001.jsonl", range(2, 5))
    first, second = (f"{tmp_path}/set/s-00{n}.jsonl" for n in range(2))
    match = rf"^mine/r2 \({second}:1, row 0\): {first}:3, row 2 has the same id; give each sample an id of its own"
    for _ in range(2):
        with pytest.raises(DataError, match=match):
            entry.open("mine")
    write_shard(tmp_path / "set" / "s-001.jsonl", range(3, 6))
    looked: list[str] = []
    refuse = RowSource.refuse_duplicate_ids
    monkeypatch.setattr(RowSource, "refuse_duplicate_ids", lambda self: looked.append(self.name) or refuse(self))
    entry.open("mine")
    entry.open("mine")
    entry.open("other")
    assert looked == ["mine", "other"], "once for each entry and state of the files"


def test_rows_without_an_id_are_numbered_in_their_shard(tmp_path):
    for name, count in (("a", 2), ("deep/b", 1)):
        write_lines(tmp_path / f"{name}.jsonl", [qa() for _ in range(count)])
    source = ShardedDataset(data_path=tmp_path / "**" / "*.jsonl").open("mine")
    assert ids(source) == ["mine/a/0", "mine/a/1", "mine/deep/b/0"]
    assert id_hashes(source, range(3)).tolist() == hash_texts(ids(source)).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_many_processes_make_the_indexes_that_one_makes(write, kind, monkeypatch, tmp_path):
    def indexed(cache: str, worth: int) -> list[bytes]:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
        monkeypatch.setattr(indexing, "WORTH_PROCESSES", worth)
        monkeypatch.setattr(indexing, "cores", lambda: 3)
        source = entry.open("mine")
        return [source.fingerprint(), ids(source), [file.name for file in (tmp_path / cache).rglob("*.safetensors")]]

    entry = write(kind, [3, 0, 4, 1])
    several, one = indexed("several", 0), indexed("one", 2**40)
    assert several[:2] == one[:2] and sorted(several[2]) == sorted(one[2])


def test_processes_list_what_is_wrong_and_stop_at_a_full_disk(write, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(indexing, "WORTH_PROCESSES", 0)
    monkeypatch.setattr(indexing, "cores", lambda: 3)
    entry = write("jsonl", [1] * 30)
    for number in range(25):
        (tmp_path / "set" / f"s-{number:03d}.jsonl").write_text("[")
    with caplog.at_level("INFO"), pytest.raises(DataError) as caught:
        entry.open("mine")
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == "mine: data_path: 5 more files cannot be used"
    assert caught.value.problems[0].startswith(f"mine: data_path: {tmp_path}/set/s-000.jsonl: holds a JSON list")
    assert "indexing 30 files (0.0 GB), which is done once" in caplog.text
    entry = write("jsonl", [2] * 30)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="set XDG_CACHE_HOME to a folder with space"):
        entry.open("mine")


def test_opening_a_large_set_loads_none_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, "WORTH_PROCESSES", 2**40)
    content = os.urandom(400_000)
    for shard in range(4):
        members: dict[str, bytes | str] = {}
        for number in range(40):
            members[f"{number}.jpg"] = content
            members[f"{number}.json"] = json.dumps(qa(f"Question {number} of {shard}?"))
        write_tar(tmp_path / f"{shard}.tar", members)
    entry = WebDataset(data_path=tmp_path)
    entry.rows_in(tmp_path).parser()
    tracemalloc.start()
    try:
        source = entry.open("mine")
        opened, peak = tracemalloc.get_traced_memory()
        train, held = split_holdout(source, 0.1)
        for number in range(len(source)):
            assert len(source[number].images[0].data) == 400_000
        read, read_peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(path.stat().st_size for path in tmp_path.glob("*.tar")) > 60e6
    assert peak < 4e6 and read - opened < 1e6 and read_peak < 6e6
    assert len(train) + len(held) == 160


def test_looking_for_held_out_content_reads_no_media(write, tmp_path, monkeypatch):
    entry = write("tar", [4, 4])
    source = entry.open("mine")
    sizes: list[int] = []
    monkeypatch.setattr(tars, "read_at", lambda *args: sizes.append(args[3]) or reading.read_at(*args))
    refuse_overlap([(source, range(4))], [(source, range(4, 8))])
    texts = [len(json.dumps(row(number))) for number in range(8)]
    assert sorted(sizes) == sorted(texts)


@pytest.mark.parametrize(
    ("keys", "said", "target"),
    [
        (
            {"format": "messages"},
            {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
            None,
        ),
        ({"format": "preference"}, {"prompt": "Q", "chosen": "A", "rejected": "B"}, Preference("A", "B")),
        ({"format": "unpaired"}, {"prompt": "Q", "completion": "A", "label": False}, Rated("A", False)),
        ({"format": "prompts"}, {"prompt": "Q", "solution": "A"}, Solution("A")),
        (
            {"format": "classification", "options": {"labels": ["A", "B"], "prompt": "Q"}},
            {"label": "A"},
            Labels(("A",)),
        ),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_in_every_container(tmp_path, kind, keys, said, target):
    item = {"id": "x", **said}
    if kind == "tar":
        write_tar(tmp_path / "s.tar", {"x.json": json.dumps(item), "x.png": picture()})
    elif kind == "parquet":
        write_parquet(tmp_path / "s.parquet", [item | {"image": {"bytes": picture(), "path": None}}])
    else:
        (tmp_path / "a.png").write_bytes(picture())
        write_lines(tmp_path / "s.jsonl", [item | {"image": "a.png"}])
    source = (WebDataset if kind == "tar" else ShardedDataset)(data_path=tmp_path, **keys).open("mine")
    expected = [("user", [picture(), "Q"])] + [("assistant", ["A"])] * (target is None)
    assert (shown(source[0]), source[0].target) == (expected, target)


def test_captions_of_texts_in_tars(tmp_path):
    write_tar(tmp_path / "s.tar", {"x.jpg": picture(), "x.txt": "A kite.\n"})
    source = WebDataset(data_path=tmp_path, prompt="What is it?").open("mine")
    assert shown(source[0]) == [("user", [picture(), "What is it?"]), ("assistant", ["A kite."])]


def test_structured_captions_find_their_schema_beside_the_shards(tmp_path):
    schema = {"type": "object", "properties": {"kind": {"enum": ["kite"]}}, "required": ["kind"]}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    write_tar(tmp_path / "s.tar", {"x.jpg": picture(), "x.json": '{"kind": "kite"}'})
    sample = WebDataset(data_path=tmp_path, format="captions").open("mine")[0]
    assert sample.messages[1].text == '{"kind": "kite"}'


def test_held_out_shards_and_lists(write, tmp_path):
    entry = write("jsonl", [3, 2])
    shards = [tmp_path / "set" / f"s-00{n}.jsonl" for n in range(2)]
    split = entry.model_copy(update={"data_path": (shards[0],), "eval_data_path": (shards[1],)})
    held = split.open_eval("mine")
    assert (len(split.open("mine")), held and len(held), entry.open_eval("mine")) == (3, 2, None)


def test_how_many_rows_are_shuffled_at_a_time(write, monkeypatch):
    assert write("tar", [3]).open("mine").shuffle_window == 8192
    assert write("tar", [3], shuffle_window=5).open("mine").shuffle_window == 5


def test_parquet_is_shuffled_within_what_can_be_kept(write, monkeypatch):
    monkeypatch.setattr(parquet, "KEPT_BYTES", 20_000)
    assert 3 < write("parquet", [30, 30]).open("mine").shuffle_window < 60
    assert write("parquet", [30], shuffle_window=7).open("mine").shuffle_window == 7


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"options": {"is_vidio": True}}, r"options\.is_vidio: unknown key; the format llava has .*is_video"),
        ({"options": {"data_path": "x"}}, r"options\.data_path: unknown key"),
        ({"options": {"is_video": 7}}, r"options\.is_video: Input should be a valid boolean"),
        ({"format": "classification"}, r"options\.labels: Field required"),
        (
            {"format": "classification", "options": {"labels": "from_data"}},
            "options: labels: from_data reads a single file of rows, which this is not; name the classes",
        ),
        (
            {"format": "classification", "options": {"labels": ["a"]}},
            "^: options: labels: two classes or more are needed; found 1",
        ),
        ({"format": "lava"}, "format: Input should be 'llava', 'messages'"),
        ({"shuffle_window": 0}, "shuffle_window: Input should be greater than or equal to 1"),
    ],
)
def test_choices_that_make_no_sense(keys, match):
    with pytest.raises(ConfigError, match=match):
        validate(WebDataset, {"data_path": "x"} | keys)


def test_an_entry_in_yaml_may_name_one_path_or_several():
    for paths in ("a/*.tar", ["a.tar", "b.tar"]):
        entry = validate(WebDataset, {"data_path": paths})
        assert validate(WebDataset, entry.to_config()) == entry
    assert entry.data_path == (Path("a.tar"), Path("b.tar"))
    entry = validate(WebDataset, {"data_path": "x", "format": "classification", "options": {"labels": ["a", "b"]}})
    assert entry.class_names == ("a", "b")
    assert validate(WebDataset, {"data_path": "x"}).class_names == ()


def test_entries_that_cannot_be_opened(write, tmp_path):
    entry = write("jsonl", [1])
    for change, match in [
        (
            {"columns": {"id": "uuid"}},
            r"^mine: data_path: columns renames those of Parquet files, and these are \.jsonl",
        ),
        ({"media_dir": Path("/none")}, "^mine: media_dir /none is not a folder; give the folder that the media lie in"),
        ({"data_path": tmp_path / "none"}, "^mine: data_path: .*/none does not exist; give a folder, a pattern"),
        ({"format": "captions"}, r"^mine: data_path: .*schema\.json"),
    ]:
        with pytest.raises(DataError, match=match):
            entry.model_copy(update=change).open("mine")
    with pytest.raises(DataError, match="^mine: eval_data_path: .*/none does not exist"):
        entry.model_copy(update={"eval_data_path": tmp_path / "none"}).open_eval("mine")
    write_tar(tmp_path / "t.tar", {"x.json": json.dumps(qa(image="x.jpg"))})
    with pytest.raises(DataError, match=r"it names the file 'x\.jpg', but its entry has no media_dir; set it"):
        WebDataset(data_path=tmp_path / "t.tar").open("mine")[0]
