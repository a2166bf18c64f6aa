from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.object_type import ObjectType
from omegaconf import OmegaConf

from vlmft.config.registry import load_registry
from vlmft.config.roots import find_roots
from vlmft.config.source import RegistrySource, serve
from vlmft.errors import ConfigError

from .conftest import Typed, write

Run = Callable[..., Typed]


@pytest.fixture
def source(home: Path) -> RegistrySource:
    roots = find_roots(home, {})
    serve(roots, load_registry(roots))
    return RegistrySource("registry", "registry://")


def test_groups_and_options_are_listed_apart(source: RegistrySource) -> None:
    assert source.list("", ObjectType.GROUP) == ["dataset", "eval_dataset", "metric", "reward"]
    assert source.list("", ObjectType.CONFIG) == []
    assert source.list("eval_dataset", ObjectType.CONFIG) == ["A", "B", "mix", "sample_qa"]
    assert source.list("metric", None) == ["exact", "loose"]
    assert source.list("metric", ObjectType.GROUP) == []


def test_only_the_virtual_groups_are_served(source: RegistrySource) -> None:
    assert source.is_group("dataset") and not source.is_group("model")
    assert source.is_config("dataset/A+B") and not source.is_config("model/tiny") and not source.is_config("dataset")


def test_each_load_gives_a_config_of_its_own(source: RegistrySource) -> None:
    first, second = source.load_config("dataset/A").config, source.load_config("dataset/A").config
    OmegaConf.update(first, "A.data_path", "changed")
    assert OmegaConf.select(second, "A.data_path") == "a.json"


def test_option_files_may_not_hide_entries(home: Path) -> None:
    write(home, {"conf/dataset/A.yaml": ""})
    with pytest.raises(
        ConfigError, match=r"conf/dataset: options of dataset are entries of registry/datasets/\*\.yaml"
    ):
        serve(find_roots(home, {}), load_registry([]))


def test_entries_are_a_mapping_with_root_and_factor(typed: Run, home: Path) -> None:
    result = typed("dataset=B+A@0.5", "metric=exact")
    (specs,) = result.specs
    assert list(specs.dataset) == ["B", "A"]
    assert specs.dataset["A"].model_dump() == {
        "data_path": "a.json",
        "media_dir": ".",
        "root": str(home),
        "factor": 0.5,
    }
    assert list(specs.metric) == ["exact"]
    assert result.compositions[0].choices == {
        "model": "tiny",
        "dataset": "B+A@0.5",
        "metric": "exact",
        "reward": "none",
        "optim": "adam",
    }


def test_rewards_are_a_mapping_with_weights_that_can_be_set_again(typed: Run) -> None:
    (specs,) = typed("dataset=A", "reward=right@5.0+brief@0.5", "reward.brief.weight=3").specs
    found = {name: spec.model_dump() for name, spec in specs.reward.items()}
    assert found == {"right": {"scale": 2.0, "weight": 5.0}, "brief": {"scale": 1.0, "weight": 3.0}}


def test_entries_take_overrides_of_fields_written_and_unwritten(typed: Run) -> None:
    (specs,) = typed("dataset=A+B", "dataset.A.media_dir=/data", "dataset.B.media_dir=x").specs
    assert (specs.dataset["A"].media_dir, specs.dataset["B"].media_dir) == ("/data", "x")


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["dataset=A", "dataset.A.mediadir=x"], "dataset.A.mediadir: unknown key; did you mean media_dir?"),
        (["dataset=A", "dataset.B.media_dir=x"], "dataset.B: unknown key; known here: A"),
        (["dataset=sampleqa"], "dataset=sampleqa: sampleqa: unknown dataset; did you mean sample_qa?"),
        (["dataset=A++B"], "dataset=A++B: 'A++B': term 2 of 3 is empty"),
        (["dataset=A+mix"], "dataset=A+mix: mix -> A: A is there twice; first reached as A"),
        (["dataset=[A,B]"], "dataset: should be one expression such as dataset=A+B, not a list"),
        (["metric=exact*2"], "metric=exact*2: exact: a metric takes no factor; found 2"),
        (["reward=right@-1"], "reward=right@-1: right: the number after @ should be finite and above 0; found '-1'"),
        (["reward=rigt@2"], "reward=rigt@2: rigt: unknown reward; did you mean right?"),
        (["metric=exat"], "metric=exat: exat: unknown metric; did you mean exact?"),
        (["-m", "dataset=A,Bx", "run.dir=s"], "dataset=Bx: Bx: unknown dataset; did you mean B?"),
        (["--cfg", "job", "dataset=A*0"], "dataset=A*0: A: the number after * should be whole"),
        (["--help", "dataset=A*0"], "dataset=A*0: A: the number after * should be whole"),
    ],
)
def test_a_wrong_choice_is_an_error_before_anything(typed: Run, argv: list[str], error: str) -> None:
    result = typed(*argv)
    assert result.err.startswith(f"error: {error}")
    assert len(result.err.splitlines()) == 1
    assert (result.code, result.specs, list(Path().iterdir())) == (2, [], [])


def test_a_cycle_shows_its_chain(typed: Run, home: Path) -> None:
    write(home / "registry", {"mixtures.yaml": "mix_a: mix_b\nmix_b: A+mix_a\n"})
    assert typed("dataset=A+mix_a").err.splitlines() == [
        "error: dataset=A+mix_a: mix_a -> mix_b -> A: A is there twice; first reached as A",
        "error: dataset=A+mix_a: mix_a -> mix_b -> mix_a: a mixture cannot contain itself",
    ]


def test_a_sweep_runs_over_expressions_and_globs(typed: Run) -> None:
    result = typed("-m", "dataset=A+B,sample_qa")
    assert [list(specs.dataset) for specs in result.specs] == [["A", "B"], ["sample_qa"]]
    assert [list(specs.dataset) for specs in typed("-m", "dataset=glob(*qa)").specs] == [["sample_qa"]]
    assert len(typed("-m", "dataset=glob(*)").specs) == 4


def test_completion_knows_entries_and_mixtures(typed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_LINE", "vlmft-main dataset=")
    assert typed("-sc", "query=bash").out.split() == ["dataset=A", "dataset=B", "dataset=mix", "dataset=sample_qa"]
    monkeypatch.setenv("COMP_LINE", "vlmft-main met")
    assert typed("-sc", "query=bash").out.split() == ["metric.", "metric="]


def test_options_of_user_roots_are_found(typed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = write(
        tmp_path / "mine", {"conf/model/mine.yaml": "width: 5\n", "registry/datasets/m.yaml": "M: {data_path: m}\n"}
    )
    monkeypatch.setenv("VLMFT_PATH", str(mine))
    (specs,) = typed("model=mine", "dataset=M+A").specs
    assert (specs.model.width, specs.dataset["M"].root) == (5, str(mine))
    assert str(mine) in typed("--info", "searchpath").out


@pytest.mark.parametrize("how", ["--config-dir", "hydra.searchpath"])
def test_hydras_own_ways_to_add_options_go_on_working(typed: Run, tmp_path: Path, how: str) -> None:
    extra = write(tmp_path / "extra", {"model/mine.yaml": "width: 6\n"})
    argv = ["--config-dir", str(extra)] if how == "--config-dir" else [f"hydra.searchpath=[{extra}]"]
    assert typed(*argv, "model=mine", "dataset=A").specs[0].model.width == 6


def test_a_missing_user_root_is_an_error_before_anything(typed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMFT_PATH", "/nowhere/at/all")
    for argv in ([], ["--help"], ["dataset=A"], ["--cfg", "job"]):
        result = typed(*argv)
        assert (result.code, result.out) == (2, "")
        assert result.err == "error: /nowhere/at/all: there is no such folder (from VLMFT_PATH)\n"
