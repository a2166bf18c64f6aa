import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.data.making import qa, save_picture
from vlmft.data import LLaVADataset
from vlmft.data.run_data import RunData, open_run_data
from vlmft.errors import ConfigError, DataError

MakeSpec = Callable[..., LLaVADataset]


@pytest.fixture
def spec(tmp_path: Path) -> MakeSpec:
    """An entry of `rows` text samples with ids of their own, `held` more of them in an eval_data_path."""

    def make(name: str, rows: int, held: int = 0, **keys: Any) -> LLaVADataset:
        def write(file: str, prefix: str, count: int) -> Path:
            path = tmp_path / f"{file}.json"
            path.write_text(json.dumps([qa(f"{name} {prefix} {i}?", "Yes.", id=f"{prefix}{i}") for i in range(count)]))
            return path

        if held:
            keys["eval_data_path"] = write(f"{name}-eval", "held", held)
        return LLaVADataset(data_path=write(name, "row", rows), **keys)

    return make


def opened(dataset: dict[str, Any], eval_dataset: dict[str, Any] | None = None, holdout: float = 0.0) -> RunData:
    return open_run_data(dataset, eval_dataset or {}, holdout, seed=0)


def trained(data: RunData) -> set[str]:
    return {source.sample_id(int(row)) for source, rows in data.mixture.visited for row in rows}


def held_out(data: RunData, at_most: int | None = None) -> list[str]:
    return [sample.id for sample in data.held_out_samples(at_most)]


def count(names: Sequence[str], prefix: str) -> int:
    return sum(name.startswith(prefix) for name in names)


class TestWhatIsHeldOut:
    def test_nothing_by_itself(self, spec: MakeSpec) -> None:
        data = opened({"a": spec("a", 10)})
        assert held_out(data) == []
        assert len(data.mixture) == len(trained(data)) == 10

    def test_a_share_of_each_entry(self, spec: MakeSpec) -> None:
        data = opened({"a": spec("a", 100), "b": spec("b", 50)}, holdout=0.2)
        held = held_out(data)
        assert trained(data) | set(held) == {f"a/row{i}" for i in range(100)} | {f"b/row{i}" for i in range(50)}
        assert trained(data) & set(held) == set()
        assert 10 <= count(held, "a/") <= 30 and 3 <= count(held, "b/") <= 17
        assert held == held_out(opened({"a": spec("a", 100), "b": spec("b", 50)}, holdout=0.2))

    def test_an_entrys_own_file_instead_of_its_share(self, spec: MakeSpec) -> None:
        data = opened({"a": spec("a", 100, held=4), "b": spec("b", 50)}, holdout=0.2)
        held = held_out(data)
        assert [name for name in held if name.startswith("a/")] == [f"a/held{i}" for i in range(4)]
        assert count(sorted(trained(data)), "a/") == 100
        assert count(held, "b/row") > 0

    def test_eval_dataset_instead_of_all_that(self, spec: MakeSpec) -> None:
        data = opened({"a": spec("a", 20, held=4)}, {"e": spec("e", 8, factor=0.5)}, holdout=0.2)
        held = held_out(data)
        assert len(held) == 4 and count(held, "e/row") == 4  # the factor takes a part of it
        assert len(trained(data)) == 20

    def test_eval_dataset_is_visited_once_whatever_its_factor(self, spec: MakeSpec) -> None:
        assert len(held_out(opened({"a": spec("a", 5)}, {"e": spec("e", 8, factor=3.0)}))) == 8

    def test_a_share_that_leaves_nothing_is_refused(self, spec: MakeSpec) -> None:
        with pytest.raises(ConfigError, match="holdout=0.001 holds out none of the 5 samples of a; raise holdout to"):
            opened({"a": spec("a", 5)}, holdout=0.001)


class TestOverlap:
    def test_of_the_same_file_is_refused(self, spec: MakeSpec) -> None:
        expected = r"^3 training samples are also held out \(training = held out\): a/row0 = e/row0, a/row1 = e/row1"
        with pytest.raises(DataError, match=expected):
            opened({"a": spec("a", 3)}, {"e": spec("a", 3)}).check(0, max_bad_samples=0)

    def test_of_the_same_content_in_another_file_is_refused(self, tmp_path: Path) -> None:
        save_picture(tmp_path / "a.png")
        for file, ids in (("train", "pqr"), ("eval", "xy")):
            rows = [qa(f"<image>\n{i}?", id=name, image="a.png") for i, name in enumerate(ids)]
            (tmp_path / f"{file}.json").write_text(json.dumps(rows))
        entry = LLaVADataset(data_path=tmp_path / "train.json", eval_data_path=tmp_path / "eval.json")
        with pytest.raises(DataError, match=r"^2 training samples are also held out .*: a/p = a/x, a/q = a/y; remove"):
            opened({"a": entry}).check(0, max_bad_samples=0)


class TestErrors:
    def test_every_entry_that_cannot_be_opened_is_named(self, spec: MakeSpec, tmp_path: Path) -> None:
        (tmp_path / "object.json").write_text("{}")
        bad = {
            "gone": LLaVADataset(data_path=tmp_path / "gone.json"),
            "good": spec("good", 3),
            "object": LLaVADataset(data_path=tmp_path / "object.json"),
        }
        with pytest.raises(DataError) as caught:
            opened(bad, {"late": LLaVADataset(data_path=tmp_path / "late.json")})
        assert [problem.partition(":")[0] for problem in caught.value.problems] == ["gone", "object", "late"]
        assert "holds a JSON object; expected a list of samples" in caught.value.problems[1]

    def test_bad_samples_up_to_the_allowed_number_are_reported(self, spec: MakeSpec, tmp_path: Path) -> None:
        rows = [qa("Q?", "" if i < 3 else "Yes.", id=i) for i in range(9)]
        (tmp_path / "bad.json").write_text(json.dumps(rows))
        data = opened({"bad": LLaVADataset(data_path=tmp_path / "bad.json")}, {"e": spec("e", 2)})
        report = data.check(10, max_bad_samples=3)
        assert (len(report.problems), report.checked, report.total, report.complete) == (3, 11, 11, True)
        with pytest.raises(DataError) as caught:
            data.check(10, max_bad_samples=2)
        assert len(caught.value.problems) == 3
        assert caught.value.problems[0].startswith(f"bad/0 ({tmp_path}/bad.json:1, row 0): turn 2 is an empty answer")

    def test_no_held_out_sample_may_be_bad(self, spec: MakeSpec, tmp_path: Path) -> None:
        (tmp_path / "bad.json").write_text(json.dumps([qa("Q?", " ", id="x"), qa(id="y")]))
        data = opened({"a": spec("a", 3)}, {"e": LLaVADataset(data_path=tmp_path / "bad.json")})
        with pytest.raises(DataError, match=r"^e/x \(.*bad.json:1, row 0\): turn 2 is an empty answer") as caught:
            data.check(10, max_bad_samples=5)
        assert [*caught.value.problems[1:]] == [
            "1 of these are held out: max_bad_samples leaves out training samples, never those that a run is judged "
            "by; mend them, or take them out of the data"
        ]

    def test_bad_samples_of_both_sides_are_listed_together(self, spec: MakeSpec, tmp_path: Path) -> None:
        for name in ("a", "e"):
            (tmp_path / f"{name}.json").write_text(json.dumps([qa(f"{name} of?", " ", id="x"), qa(f"{name}?", id="y")]))
        data = opened(
            {"a": LLaVADataset(data_path=tmp_path / "a.json")}, {"e": LLaVADataset(data_path=tmp_path / "e.json")}
        )
        with pytest.raises(DataError) as caught:
            data.check(10, max_bad_samples=0)
        assert [problem.split()[0] for problem in caught.value.problems] == ["e/x", "a/x"]

    def test_without_time_nothing_is_checked(self, tmp_path: Path) -> None:
        (tmp_path / "bad.json").write_text(json.dumps([qa("Q?", " ")]))
        report = opened({"bad": LLaVADataset(data_path=tmp_path / "bad.json")}).check(0, 0)
        assert (report.problems, report.checked, report.total, report.complete) == ([], 0, 1, False)


class TestCap:
    def test_is_shared_in_proportion_and_the_same_in_every_run(self, spec: MakeSpec) -> None:
        parts = {"e": spec("e", 60), "f": spec("f", 30)}
        data = opened({"a": spec("a", 5)}, parts)
        held = held_out(data, 30)
        assert (count(held, "e/"), count(held, "f/")) == (20, 10)
        assert held == held_out(opened({"a": spec("a", 5)}, parts), 30)
        assert set(held_out(data, 15)) < set(held)
        assert len(held_out(data, 90)) == len(held_out(data, None)) == 90

    def test_leaves_each_entry_a_sample(self, spec: MakeSpec) -> None:
        held = held_out(opened({"a": spec("a", 5)}, {"e": spec("e", 500), "f": spec("f", 2)}), 10)
        assert (count(held, "e/"), count(held, "f/")) == (10, 1)


def test_fingerprints_name_each_training_file(spec: MakeSpec) -> None:
    first = opened({"a": spec("a", 5), "b": spec("b", 7)}, {"e": spec("e", 2)}).fingerprints()
    assert {name: found["rows"] for name, found in first.items()} == {"a": 5, "b": 7}
    assert len({str(found["sha256"]) for found in first.values()}) == 2


def test_held_out_files_are_named_by_themselves(spec: MakeSpec) -> None:
    data = opened({"a": spec("a", 5)}, {"e": spec("e", 2)})
    assert {name: found["rows"] for name, found in data.held_out_fingerprints().items()} == {"e": 2}
    assert data.num_held_out == 2
