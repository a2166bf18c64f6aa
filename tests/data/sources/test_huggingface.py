import json
import multiprocessing
import os
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature

from tests.data.making import in_new_process, qa
from tests.data.sources.containers import picture, shown, write_lines, write_parquet
from vlmft.config.spec import validate
from vlmft.data import HFDataset, LLaVADataset
from vlmft.data.hashing import hash_texts, id_hashes
from vlmft.data.run_data import open_run_data
from vlmft.data.sources import arrow, load_hf
from vlmft.data.sources.rows import RowSource
from vlmft.errors import ConfigError, DataError
from vlmft.types import Image, Labels

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(load_hf, "HF_HUB_CACHE", str(tmp_path / "hub"))
    datasets.disable_progress_bars()


def rows(count: int = 5, first: int = 0) -> list[dict[str, Any]]:
    return [
        qa(f"<image>\nQuestion {n}?", f"Answer {n}.", id=f"r{n}", image=f"{'ab'[n % 2]}.png")
        for n in range(first, first + count)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a.png and b.png."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(picture("red"))
    (tmp_path / "set" / "b.png").write_bytes(picture("blue"))
    return tmp_path / "set"


def embedded(folder: Path, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with their pictures' bytes, as `datasets` stores them."""
    return [item | {"image": {"bytes": (folder / item["image"]).read_bytes(), "path": None}} for item in items]


def opened(path: Any, **keys: Any) -> RowSource:
    return HFDataset(path=str(path), **keys).open("mine")


def saved(folder: Path, items: list[dict[str, Any]], **features: Any) -> Path:
    dataset = Dataset.from_list(items)
    for column, feature in features.items():
        dataset = dataset.cast_column(column, feature)
    dataset.save_to_disk(folder / "saved")
    return folder / "saved"


class TestWhatIsOpened:
    @pytest.fixture
    def plain(self, folder: Path) -> list[Any]:
        (folder / "plain.json").write_text(json.dumps(rows()))
        source = LLaVADataset(data_path=folder / "plain.json").open("mine")
        expected = [shown(source[number]) for number in range(5)]
        (folder / "plain.json").unlink()
        return expected

    def holds(self, source: RowSource, plain: list[Any]) -> None:
        assert [shown(source[number]) for number in range(5)] == plain
        assert [source[number].id for number in range(5)] == [f"mine/r{number}" for number in range(5)]
        assert id_hashes(source, [3, 0]).tolist() == hash_texts(["mine/r3", "mine/r0"]).tolist()

    def test_a_parquet_file(self, folder, plain):
        self.holds(opened(write_parquet(folder / "x.parquet", embedded(folder, rows()))), plain)

    def test_lines_with_media_beside_them(self, folder, plain):
        self.holds(opened(write_lines(folder / "x.jsonl", rows())), plain)

    def test_an_arrow_file(self, folder, plain):
        shutil.copy(next(saved(folder, rows()).glob("*.arrow")), folder / "x.arrow")
        self.holds(opened(folder / "x.arrow"), plain)

    def test_a_folder_of_files_by_split(self, folder, plain, tmp_path):
        for split, items in (("train", rows()), ("validation", rows(2, 5))):
            write_parquet(tmp_path / "parts" / f"{split}-00000-of-00001.parquet", embedded(folder, items))
        entry = HFDataset(path=str(tmp_path / "parts"), eval_split="validation")
        self.holds(entry.open("mine"), plain)
        held = entry.open_eval("mine")
        assert held is not None and [held[number].id for number in range(len(held))] == ["mine/r5", "mine/r6"]
        assert opened(tmp_path / "parts").table.path == tmp_path / "parts" / "train"
        assert HFDataset(path="x").open_eval("mine") is None

    def test_a_part_of_a_split(self, folder):
        source = opened(write_lines(folder / "x.jsonl", rows()), split="train[60%:]")
        assert [source[number].id for number in range(len(source))] == ["mine/r3", "mine/r4"]

    def test_what_save_to_disk_wrote(self, folder, plain):
        self.holds(opened(saved(folder, rows()), media_dir=folder), plain)
        both = DatasetDict(train=Dataset.from_list(rows()), held=Dataset.from_list(rows(2)))
        both.save_to_disk(folder / "both")
        self.holds(opened(folder / "both", media_dir=folder), plain)
        assert len(opened(folder / "both", split="held", media_dir=folder)) == 2

    def test_rows_that_were_chosen_or_shuffled_before_saving(self, folder):
        Dataset.from_list(rows()).select([4, 0, 2]).save_to_disk(folder / "some")
        source = opened(folder / "some", media_dir=folder)
        assert [source[number].id for number in range(3)] == ["mine/r4", "mine/r0", "mine/r2"]

    def test_relative_paths_start_from_the_root(self, folder, tmp_path):
        write_lines(folder / "x.jsonl", rows())
        assert len(HFDataset(root=tmp_path, path="set/x.jsonl").open("mine")) == 5


def cached(folder: Path, tmp_path: Path, commit: str, items: list[dict[str, Any]], config: str = "default") -> None:
    """Leave in the cache what `datasets` leaves there of owner/name on the hub."""
    builder = datasets.load_dataset_builder(
        "parquet", data_files=str(write_parquet(tmp_path / commit / "x.parquet", embedded(folder, items)))
    )
    builder.download_and_prepare()
    to = tmp_path / "hf" / "owner___name" / config / "0.0.0" / commit
    shutil.copytree(builder.cache_dir, to)
    (to / "parquet-train.arrow").rename(to / "name-train.arrow")
    info = json.loads((to / "dataset_info.json").read_text())
    (to / "dataset_info.json").write_text(json.dumps(info | {"config_name": config, "dataset_name": "name"}))


class TestTheHubOutOfReach:
    def test_a_copy_at_hand_is_used(self, folder, tmp_path):
        cached(folder, tmp_path, COMMIT, rows())
        source = opened("owner/name")
        assert source[3].id == "mine/r3" and source[3].images[0].data == picture("blue")
        assert source[3].place == "owner/name, split train, row 3"
        assert len(opened("owner/name", name="default")) == 5

    def test_the_revision_is_the_one_that_is_asked_for(self, folder, tmp_path):
        cached(folder, tmp_path, COMMIT, rows(5))
        cached(folder, tmp_path, OTHER, rows(3))
        os.utime(tmp_path / "hf" / "owner___name" / "default" / "0.0.0" / OTHER, (2e9, 2e9))
        assert len(opened("owner/name")) == 3
        assert len(opened("owner/name", revision=COMMIT)) == 5
        refs = tmp_path / "hub" / "datasets--owner--name" / "refs"
        refs.mkdir(parents=True)
        (refs / "v1").write_text(COMMIT)
        assert len(opened("owner/name", revision="v1")) == 5
        for revision in ("v2", "c" * 40):
            match = f"^mine: owner/name: the hub is out of reach, and there is no copy of revision={revision} at hand"
            with pytest.raises(DataError, match=rf"{match} \(the last one is of commit {OTHER}\); go online"):
                opened("owner/name", revision=revision)

    def test_a_name_that_is_nowhere(self):
        with pytest.raises(DataError, match=r"^mine: owner/none: .*Couldn't .*; no such local file or folder is there"):
            opened("owner/none")

    def test_a_configuration_that_is_not_there(self, folder, tmp_path):
        cached(folder, tmp_path, COMMIT, rows())
        with pytest.raises(DataError, match=r"^mine: owner/name: .*other.*; no such local file or folder .* name or"):
            opened("owner/name", name="other")


class TestRows:
    def test_pictures_stay_encoded(self, folder):
        source = opened(saved(folder, embedded(folder, rows()), image=ImageFeature()))
        assert source[1].images[0].data == picture("blue")
        path = write_parquet(folder / "x.parquet", [rows(1)[0] | {"image": {"bytes": None, "path": "a.png"}}])
        assert opened(path)[0].images == (Image(folder / "a.png"),)

    def test_lists_of_pictures_in_messages(self, folder):
        content = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
        item = {
            "images": [{"bytes": picture(), "path": None}],
            "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": [
                {"type": "text", "text": "A kite."}]}],
        }  # fmt: skip
        source = opened(saved(folder, [item], images=List(ImageFeature())), format="messages")
        assert shown(source[0]) == [("user", [picture(), "What?"]), ("assistant", ["A kite."])]
        assert source[0].id == "mine/0"

    def test_numbers_of_classes_are_replaced_by_their_names(self, folder):
        items = [{"image": {"bytes": picture(), "path": None}, "label": n} for n in (1, 0, -1)]
        path = saved(folder, items, label=ClassLabel(names=["cat", "dog"]), image=ImageFeature())
        source = opened(path, format="classification", options={"labels": ["dog", "cat"]})
        assert [source[number].target for number in (0, 1)] == [Labels(("dog",)), Labels(("cat",))]
        with pytest.raises(DataError, match=r"^mine/2 \(.*saved, split train, row 2\): it has no 'label'"):
            source[2]
        features = {"a": List(ClassLabel(names=["x", "y"])), "b": {"c": ClassLabel(names=["z"])}}
        table = arrow.ArrowRows(
            Dataset.from_list([{"a": [1, 0], "b": {"c": 0}}, {"a": None, "b": None}], Features(features)),
            Path("p"), "train", "mine", {},
        )  # fmt: skip
        assert table.value(0) == table.outline(0) == {"a": ["y", "x"], "b": {"c": "z"}}
        assert table.value(1) == table.outline(1) == {"a": None, "b": None}

    def test_columns_get_the_names_of_the_format(self, folder):
        items = [{"uuid": item["id"], "talk": item["conversations"], "image": "a.png"} for item in rows()]
        source = opened(saved(folder, items), columns={"id": "uuid", "conversations": "talk"}, media_dir=folder)
        assert source[2].id == "mine/r2" and source[2].messages[1].text == "Answer 2."
        with pytest.raises(DataError, match=r"saved: has no column 'uid', which columns\.id names; did you mean uuid"):
            opened(folder / "saved", columns={"id": "uid"})

    def test_ids_of_numbers_and_none(self, folder):
        source = opened(saved(folder, [{"id": 7, **qa()}, {"id": None, **qa()}]))
        assert [source.sample_id(number) for number in (0, 1)] == ["mine/7", "mine/1"]
        assert source.table.id_hashes("other", [1]).tolist() == hash_texts(["other/1"]).tolist()

    def test_the_same_id_twice(self, folder):
        with pytest.raises(DataError, match=r"^mine/r0 \(.*saved, split train, row 1\): row 0 has the same id"):
            opened(saved(folder, rows(1) * 2))

    def test_a_source_travels_to_other_processes(self, folder):
        source = opened(saved(folder, rows()), media_dir=folder)
        expected = [shown(source[number]) for number in range(5)]
        assert len(pickle.dumps(source)) < 6000
        for method in ("fork", "spawn"):
            # Not a Pool, which replaces a process that dies for ever and never says so.
            with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
                assert pool.submit(_read_all, source).result(timeout=60) == expected

    def test_outlines_are_values_with_sizes_in_place_of_bytes(self, folder):
        items = [rows(1)[0] | {"image": {"bytes": b"x" * 70, "path": "a"}, "many": [b"12", None], "n": 3}]
        table = opened(saved(folder, items)).table
        assert table.outline(0) == table.value(0) | {"image": {"bytes": b"70", "path": "a"}, "many": [b"2", None]}

    def test_content_that_is_held_out_is_found(self, folder):
        both = DatasetDict(train=Dataset.from_list(rows()), held=Dataset.from_list(rows(2, 3)))
        both.save_to_disk(folder / "both")
        entry = HFDataset(path=str(folder / "both"), eval_split="held", media_dir=folder)
        with pytest.raises(DataError, match=r"^2 training samples are also held out .*: mine/r3 = mine/r3, mine/r4"):
            open_run_data({"mine": entry}, {}, 0, 0).check(0, 0)
        apart = DatasetDict(train=Dataset.from_list(rows(3)), held=Dataset.from_list(rows(2, 3)))
        apart.save_to_disk(folder / "apart")
        entry = entry.model_copy(update={"path": str(folder / "apart")})
        open_run_data({"mine": entry}, {}, 0, 0).check(0, 0)


def _read_all(source: RowSource) -> list[Any]:
    return [shown(source[number]) for number in range(len(source))]


def test_the_fingerprint_follows_content_and_split(folder, tmp_path):
    one = opened(write_lines(folder / "x.jsonl", rows())).fingerprint()
    assert one["rows"] == 5
    assert opened(write_lines(tmp_path / "elsewhere" / "y.jsonl", rows()), media_dir=folder).fingerprint() == one
    assert opened(folder / "x.jsonl", split="train[:3]").fingerprint() != one
    changed = rows()
    changed[2]["id"] = "other"
    assert opened(write_lines(folder / "x.jsonl", changed)).fingerprint()["sha256"] != one["sha256"]


def test_a_dataset_that_brings_code_is_refused_and_the_code_is_not_run(tmp_path):
    (tmp_path / "scripted").mkdir()
    (tmp_path / "scripted" / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    write_lines(tmp_path / "scripted" / "train.jsonl", rows())
    match = "scripts are no longer supported, .*; its own code is never run: convert it to Parquet"
    for path in (tmp_path / "scripted", tmp_path / "scripted" / "scripted.py"):
        with pytest.raises(DataError, match=match if path.is_dir() else r"ends in \.py; expected one of \.arrow, "):
            opened(path)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ConfigError, match="trust_remote_code: unknown key"):
        validate(HFDataset, {"path": "x", "trust_remote_code": True})


@pytest.mark.parametrize(
    ("write", "keys", "match"),
    [
        ({"x.jsonl": "{"}, {}, r"x\.jsonl: .*An error occurred while generating the dataset \(.*; mend the files"),
        ({"x.parquet": "PAR1"}, {}, r"x\.parquet: .*; mend the files, or path"),
        ({"x.pkl": "x"}, {}, r"x\.pkl: ends in \.pkl; expected one of \.arrow, \.csv, \.json"),
        ({"x.jsonl": "{}"}, {"name": "c"}, r"x\.jsonl: is one file, which has no configuration 'c'; set name: null"),
        ({"x.jsonl": "{}"}, {"split": "test"}, r"x\.jsonl: .*[Uu]nknown split \"test\".*; mend the files, or path"),
        ({"x.jsonl": "{}"}, {"revision": "v1"}, r"revision=v1 is of the hub, and .*x\.jsonl is local; leave it out"),
        ({"x/a.fasta": ">a\nACGT\n"}, {}, r"/x: is read by the builder 'fasta'; expected one of arrow, cache, csv"),
        ({"x/a.unknown": "x"}, {}, r"/x: .*; mend the files, or path"),
    ],
)
def test_what_cannot_be_opened(tmp_path, write, keys, match):
    ((name, text),) = write.items()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f"^mine: .*{match}"):
        opened(tmp_path / name.partition("/")[0], **keys)


def test_splits_that_are_not_there(folder):
    path = saved(folder, rows())
    with pytest.raises(DataError, match="saved: holds the split 'train' alone, and not 'test'"):
        opened(path, split="test")
    DatasetDict(one=Dataset.from_list(rows())).save_to_disk(folder / "both")
    with pytest.raises(DataError, match="both: has no split 'train'; it has one"):
        opened(folder / "both")
    with pytest.raises(DataError, match=r"^p: its split 'train' holds no sample; expected at least one"):
        arrow.ArrowRows(Dataset.from_list(rows()).select([]), Path("p"), "train", "mine", {})
    with pytest.raises(DataError, match=r'Instruction "train\[:0\]" corresponds to no data'):
        opened(write_lines(folder / "x.jsonl", rows()), split="train[:0]")


def test_nothing_heavy_comes_with_it(folder, tmp_path):
    path = saved(folder, rows())
    code = f"""
import json, sys
from vlmft.data import HFDataset
light = "datasets" not in sys.modules
source = HFDataset(path={str(path)!r}, media_dir={str(folder)!r}).open("mine")
source[0]
print(json.dumps([light, [name for name in ("torch", "transformers") if name in sys.modules]]))
"""
    environment = {"XDG_CACHE_HOME": str(tmp_path), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    assert in_new_process(code, **environment) == [True, []]


def test_a_value_column_of_any_type_does_not_matter(folder):
    dataset = Dataset.from_list([qa(id="x") | {"n": 3}]).cast_column("n", Value("float32"))
    dataset.save_to_disk(folder / "typed")
    assert opened(folder / "typed")[0].id == "mine/x"
