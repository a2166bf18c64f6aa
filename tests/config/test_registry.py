from pathlib import Path

import pytest

from vlmft.config.registry import Registry, load_registry
from vlmft.config.roots import Root
from vlmft.errors import ConfigError

from .conftest import write


def load(*folders: Path) -> Registry:
    return load_registry([Root(folder, "test") for folder in folders])


def problems(*folders: Path) -> tuple[str, ...]:
    seen = []
    for _ in range(2):  # Hydra composes twice and swallows the first error
        with pytest.raises(ConfigError) as caught:
            load(*folders)
        seen.append(caught.value.problems)
    assert seen[0] == seen[1]
    return seen[0]


def test_entries_of_all_files_and_roots_are_there(home: Path, tmp_path: Path) -> None:
    mine = write(tmp_path / "mine" / "registry", {"datasets/x.yaml": "X: {data_path: '${oc.env:D}/x.json'}\n"}).parent
    registry = load(home, mine)
    assert registry.names("datasets") == ["A", "B", "X", "mix", "sample_qa"]
    assert registry.names("metrics") == ["exact", "loose"]
    assert registry.select("datasets", "X") == {
        "X": {"root": str(mine), "data_path": "${oc.env:D}/x.json", "factor": 1.0}
    }


def test_an_entry_may_set_its_root(tmp_path: Path) -> None:
    home = write(tmp_path, {"registry/datasets/x.yaml": "X: {data_path: x.json, root: /data}\n"})
    assert load(home).select("datasets", "X")["X"]["root"] == "/data"


def test_a_choice_keeps_its_order_and_multiplies_factors(home: Path) -> None:
    chosen = load(home).select("datasets", "sample_qa+mix*3")
    assert [(name, entry["factor"]) for name, entry in chosen.items()] == [("sample_qa", 1), ("A", 6), ("B", 1.5)]


@pytest.mark.parametrize("kind", ["datasets", "metrics", "rewards"])
def test_none_chooses_nothing(home: Path, kind: str) -> None:
    assert load(home).select(kind, "none") == {}


def test_a_metric_takes_no_factor(home: Path) -> None:
    assert load(home).select("metrics", "loose+exact") == {"loose": {"scale": 2.0}, "exact": {"scale": 1.0}}
    with pytest.raises(ConfigError, match="exact: a metric takes no factor; found 0.5"):
        load(home).select("metrics", "loose+exact@0.5")


def test_a_rewards_factor_is_its_weight(home: Path) -> None:
    chosen = load(home).select("rewards", "right@5.0+brief*2")
    assert chosen == {"right": {"scale": 2.0, "weight": 5.0}, "brief": {"scale": 1.0, "weight": 2.0}}
    assert load(home).select("rewards", "brief") == {"brief": {"scale": 1.0, "weight": 1.0}}


@pytest.mark.parametrize("weight", ["0", "-1", "inf", "nan", "1e400", ""])
def test_a_weight_is_a_finite_number_above_0(home: Path, weight: str) -> None:
    with pytest.raises(ConfigError, match=f"brief: the number after @ should be finite and above 0; found '{weight}'"):
        load(home).select("rewards", f"right+brief@{weight}")


@pytest.mark.parametrize(("kind", "word"), [("metrics", "metric"), ("rewards", "reward")])
def test_mixtures_hold_datasets_alone(home: Path, kind: str, word: str) -> None:
    with pytest.raises(ConfigError, match=f"mix: unknown {word}"):
        load(home).select(kind, "mix")


def test_a_root_without_a_registry_is_fine(tmp_path: Path) -> None:
    assert load(tmp_path).names("datasets") == []


def test_what_is_defined_twice_names_both_files(home: Path, tmp_path: Path) -> None:
    write(home / "registry", {"datasets/three.yaml": "A: {data_path: z}\n"})
    mine = write(
        tmp_path / "mine" / "registry", {"datasets/x.yaml": "B: {}\n", "mixtures.yaml": "mix: B\nA: B\n"}
    ).parent
    assert problems(home, mine) == (
        f"{home}/registry/datasets/three.yaml: A: is defined already in {home}/registry/datasets/one.yaml",
        f"{mine}/registry/datasets/x.yaml: B: is defined already in {home}/registry/datasets/one.yaml",
        f"{mine}/registry/mixtures.yaml: mix: is defined already in {home}/registry/mixtures.yaml",
        f"{mine}/registry/mixtures.yaml: A: is a dataset's name already, in {home}/registry/datasets/one.yaml",
    )


def test_every_problem_is_listed(tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    write(
        folder,
        {
            "dataset/x.yaml": "",
            "datasets/bad.yaml": "'a b': {}\n3: {}\nnone: {}\nflat: x.json\nlisted: [1]\ntwice: {factor: 2}\n",
            "datasets/broken.yaml": "a: [\n",
            "datasets/double.yaml": "a: {}\na: {}\n",
            "datasets/old.yml": "",
            "datasets/.hidden": "",
            "mixtures.yaml": "m: 3\nn: [A, 3]\no: {A: 1}\n",
            "notes.txt": "",
            "rewards/mine.yaml": "heavy: {weight: 2}\n",
        },
    )
    found = problems(tmp_path)
    expected = [
        "dataset: has no meaning in a registry; did you mean datasets?",
        "bad.yaml: 'a b': a name is text of letters, digits, '_' and '-'",
        "bad.yaml: 3: a name is text of letters, digits, '_' and '-' (quote a number)",
        "bad.yaml: none: is a reserved name",
        "bad.yaml: flat: should be a mapping (_target_: ..., ...); found 'x.json'",
        "bad.yaml: listed: should be a mapping (_target_: ..., ...); found [1]",
        "bad.yaml: twice: factor is given where the entry is chosen (twice*3, twice@0.25)",
        "broken.yaml:2:1: bad YAML",
        "double.yaml:2:1: bad YAML: found duplicate key a",
        "old.yml: is no .yaml file",
        "mixtures.yaml: m: should be text such as A+B*2, or a list of such texts; found 3",
        "mixtures.yaml: n: should be text such as A+B*2, or a list of such texts; found ['A', 3]",
        "mixtures.yaml: o: should be text such as A+B*2, or a list of such texts; found {'A': 1}",
        "notes.txt: has no meaning in a registry",
        "mine.yaml: heavy: weight is given where the entry is chosen (heavy*3, heavy@0.25)",
    ]
    assert len(found) == len(expected), found
    for problem, part in zip(found, expected, strict=True):
        assert part in problem
