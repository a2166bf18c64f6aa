"""The files of conf/ and registry/: each composes, together with any other, and each value has one home."""

import inspect
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

import vlmft.data
from vlmft.annotate import AnnotateConfig
from vlmft.annotation.templates import Template
from vlmft.clips import ClipsConfig
from vlmft.config.app import Composition, run_app
from vlmft.config.media import Augmentation, MediaRules, PixelBudget, VideoRule
from vlmft.config.registry import load_registry
from vlmft.config.roots import find_roots
from vlmft.config.spec import Spec, validate
from vlmft.config.targets import resolve_target
from vlmft.merge import MergeConfig
from vlmft.plan import PlanConfig
from vlmft.planning.specs import Device
from vlmft.preview import PreviewConfig
from vlmft.recipes.recipe import Rate
from vlmft.report import ReportConfig
from vlmft.scoring import Reward
from vlmft.train import TrainConfig
from vlmft.validate import ValidateConfig

CONF = Path(__file__).parents[1] / "conf"
OPEN = {PixelBudget, VideoRule}
"""Chosen in a model's YAML, and by hand in an entry, where null leaves a value to the run."""
GROUPS = {
    folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
    for folder in sorted(CONF.iterdir())
    if folder.is_dir() and folder.name not in ("hydra", "experiment", "annotator")  # not choices of a training alone
}
MODELS = GROUPS["model"]
# To the other groups all families are alike: one of a kind stands for them in pairs, and each is composed by itself.
GROUPS["model"] = ["gemma3", "qwen25vl", "tiny_qwen25vl"]
POLICIES = sorted(path.stem for path in (CONF / "recipe/policy").glob("*.yaml"))
ENTRIES = ("dataset.", "eval_dataset.", "metric.", "reward.")
REGISTRY = load_registry(find_roots(environ={}))


@pytest.fixture(scope="module", autouse=True)
def _no_user_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.delenv("VLMFT_PATH", raising=False)
        monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
        yield


def compose(*argv: str) -> tuple[TrainConfig, dict[str, str]]:
    """What `python -m vlmft.train *argv` would run, and its choices; errors are on the captured stderr."""
    composed: list[tuple[TrainConfig, dict[str, str]]] = []

    def job(config: TrainConfig, composition: Composition) -> int:
        composed.append((config, composition.choices))
        return 0

    assert run_app("train", TrainConfig, job, argv=argv) == 0, argv
    return composed[0]


def specs_in(value: Any, path: str = "") -> Iterator[tuple[str, Spec]]:
    """Every spec of a config with the path of its keys."""
    if isinstance(value, Spec):
        yield path, value
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from specs_in(item, f"{path}.{name}" if path else str(name))


def all_specs(base: type[Spec] = Spec) -> set[type[Spec]]:
    """Every spec class of vlmft, families' abstract bases left out. Importing TrainConfig has loaded them all."""
    below = {found for kind in base.__subclasses__() for found in {kind} | all_specs(kind)}
    return {kind for kind in below if kind.__module__.startswith("vlmft.") and not kind.is_abstract}


def covering_rows() -> list[dict[str, str]]:
    """Rows of one option a group, in which any two options of different groups stand together at least once."""
    wanted = {
        frozenset({(a, x), (b, y)})
        for a, b in itertools.combinations(GROUPS, 2)
        for x, y in itertools.product(GROUPS[a], GROUPS[b])
    }
    rows = []
    while wanted:
        row = dict(min(map(sorted, wanted)))
        for group in GROUPS:
            if group not in row:
                row[group] = max(
                    GROUPS[group],
                    key=lambda option: sum(frozenset({(group, option), chosen}) in wanted for chosen in row.items()),
                )
        wanted -= {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}
        rows.append(row)
    return rows


def test_any_two_options_compose_together() -> None:
    rows = [compose(*(f"{group}={option}" for group, option in row.items()))[1] for row in covering_rows()]
    together = {(a, choices[a], b, choices[b]) for choices in rows for a, b in itertools.product(GROUPS, repeat=2)}
    for a, b in itertools.permutations(GROUPS, 2):
        assert {(a, x, b, y) for x, y in itertools.product(GROUPS[a], GROUPS[b])} <= together


@pytest.mark.parametrize("model", MODELS)
def test_each_model_composes(model: str) -> None:
    config, _ = compose(f"model={model}")
    wanted = yaml.safe_load((CONF / f"model/{model}.yaml").read_text())["_target_"]
    assert type(config.model) is resolve_target(wanted, Spec)
    assert config.model.model_fields_set == set(type(config.model).model_fields)  # each value stands in the YAML


@pytest.mark.parametrize("policy", POLICIES)
def test_a_recipes_policy_can_be_exchanged(policy: str) -> None:
    config, _ = compose("recipe=lora_llm", f"recipe/policy@recipe.vision_tower={policy}")
    target = yaml.safe_load((CONF / f"recipe/policy/{policy}.yaml").read_text())["_target_"]
    assert type(config.recipe.vision_tower).__name__ == target.rpartition(".")[2]


EXPERIMENTS = sorted((CONF / "experiment").glob("*.yaml"))
SWEPT = [path for path in EXPERIMENTS if "hydra" in yaml.safe_load(path.read_text())]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_is_one_run_with_its_name(path: Path) -> None:
    config, _ = compose(f"+experiment={path.stem}")
    assert config.run.name == path.stem


@pytest.mark.parametrize("path", SWEPT, ids=lambda path: path.stem)
def test_an_experiment_is_so_many_runs_that_differ_as_it_says(path: Path) -> None:
    """Each job's recipe is the one that its words choose; nothing else differs."""
    composed: list[dict[str, Any]] = []

    def job(config: TrainConfig, composition: Composition) -> int:
        composed.append(config.to_config())
        return 0

    assert run_app("train", TrainConfig, job, argv=["-m", f"+experiment={path.stem}", "run.dir=sweep"]) == 0
    params = yaml.safe_load(path.read_text())["hydra"]["sweeper"]["params"]
    found = [[_at(config, key) for key in params] for config in composed]
    assert len({str(values) for values in found}) == len(composed) > 1
    for config in composed:
        config.pop("run")
        for key in params:
            parent, _, name = key.rpartition(".")
            _at(config, parent).pop(name)
    assert all(config == composed[0] for config in composed)


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


@pytest.mark.parametrize("path", SWEPT, ids=lambda path: path.stem)
def test_it_is_three_ranks_by_two_sets_of_targets(path: Path) -> None:
    found: list[tuple[int, Any]] = []

    def job(config: TrainConfig, composition: Composition) -> int:
        llm: Any = config.recipe.to_config()["llm"]
        found.append((llm["rank"], llm["targets"]))
        return 0

    assert run_app("train", TrainConfig, job, argv=["-m", f"+experiment={path.stem}", "run.dir=sweep"]) == 0
    two, four = ["q_proj", "v_proj"], ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert found == [(rank, targets) for rank in (4, 16, 64) for targets in (two, four)]


def test_every_entry_of_the_registry_is_valid() -> None:
    datasets, metrics, rewards = (REGISTRY.names(kind) for kind in ("datasets", "metrics", "rewards"))
    assert datasets and metrics and rewards
    groups = {"dataset": datasets, "eval_dataset": datasets, "metric": metrics, "reward": rewards}
    for group, names in groups.items():
        for name in names:
            config, _ = compose(f"{group}={name}")
            assert getattr(config, group)
    config, _ = compose(f"metric={'+'.join(metrics)}", f"dataset={'+'.join(REGISTRY.entries['datasets'])}")
    assert list(config.metric) == metrics


def test_each_reward_is_the_metric_of_its_name() -> None:
    config, _ = compose("reward=" + "+".join(f"{name}@2.5" for name in REGISTRY.names("rewards")))
    metrics, _ = compose("metric=" + "+".join(REGISTRY.names("metrics")))
    assert {name: reward.metric for name, reward in config.reward.items()} == metrics.metric
    assert {reward.weight for reward in config.reward.values()} == {2.5}


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_every_file_begins_with_what_it_is_for(path: Path) -> None:
    first = next(line for line in path.read_text().splitlines() if not line.startswith("# @package"))
    assert first.startswith("# ") and len(first) > 10


@pytest.fixture(scope="module")
def chosen_specs() -> list[tuple[str, Spec]]:
    """Every spec that conf/ makes, with its path; not the registry's entries, whose defaults stand in their specs."""
    configs = []
    for number in range(max(map(len, GROUPS.values()))):
        words = (f"{group}={options[number % len(options)]}" for group, options in GROUPS.items())
        configs.append(compose(*words)[0])
    return [(path, spec) for config in configs for path, spec in specs_in(config) if not path.startswith(ENTRIES)]


def test_each_value_of_a_chosen_thing_stands_in_its_yaml(chosen_specs: list[tuple[str, Spec]]) -> None:
    """A default in the spec would be a second home: `--cfg job` would not show it."""
    problems = set()
    for path, spec in chosen_specs:
        kind = type(spec).__name__
        problems |= {
            f"{path}: {kind}.{name}: no value in conf/"
            for name in type(spec).model_fields.keys() - spec.model_fields_set
        }
        problems |= {
            f"{kind}.{name}: a default in the spec, beside the one in conf/"
            for name, field in type(spec).model_fields.items()
            # An entry writes such a spec as well; what it leaves open there is the run's.
            if not field.is_required() and not (type(spec) in OPEN and field.default is None)
        }
    assert sorted(problems) == []


def test_every_field_says_what_it_means() -> None:
    """A field that holds further specs is described by these."""

    def holds_specs(annotation: Any) -> bool:
        inside = get_args(annotation)
        return isinstance(annotation, type) and issubclass(annotation, Spec) or any(map(holds_specs, inside))

    undescribed = {
        f"{kind.__module__}.{kind.__name__}.{name}"
        for kind in all_specs()
        for name, field in kind.model_fields.items()
        if not field.description and not holds_specs(field.annotation)
    }
    assert sorted(undescribed) == []
    assert [kind.__name__ for kind in all_specs() if not kind.__doc__] == []


def test_no_spec_swallows_unknown_keys() -> None:
    for kind in all_specs():
        kinds = {parameter.kind for parameter in inspect.signature(kind).parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD not in kinds, kind
        assert kind.__init__ is BaseModel.__init__ and kind.model_config["extra"] == "forbid", kind


def targets_in(value: Any) -> Iterator[str]:
    """Every `_target_` of plain YAML values."""
    if isinstance(value, dict):
        yield from (item for key, item in value.items() if key == "_target_")
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from targets_in(item)


def test_every_spec_can_be_chosen(chosen_specs: list[tuple[str, Spec]]) -> None:
    """Each is named by a file, written by users in their own registry, or stands in another spec."""
    of_hydra = set((CONF / "hydra").rglob("*.yaml"))
    files = [*(set(CONF.rglob("*.yaml")) - of_hydra), *(CONF.parent / "registry").rglob("*.yaml")]
    named = {resolve_target(target, Spec) for path in files for target in targets_in(yaml.safe_load(path.read_text()))}
    users = {getattr(vlmft.data, name) for name in vlmft.data.__all__}
    commands = {
        AnnotateConfig,
        ClipsConfig,
        Device,
        MergeConfig,
        PlanConfig,
        PreviewConfig,
        ReportConfig,
        ValidateConfig,
    }
    fixed = (
        {type(spec) for path, spec in chosen_specs if path in ("", "run", "trainer.early_stopping") or "lr" in path}
        | commands
        | {Device}
    )
    # recipe.rates=[{match: norm, lr: 1e-6}]; a file of templates; an entry's augment, and all that it says of its
    # media; a metric with its weight
    by_hand = {Rate, Template, Augmentation, MediaRules, Reward} | OPEN
    assert all_specs() - named - users - fixed == by_hand


@pytest.mark.parametrize(
    ("choices", "key", "value"),
    [
        ([], "model.lr.full", 0.5),
        ([], "recipe.llm.lr_factor", 0.5),
        (["recipe=lora_llm"], "recipe.llm.targets", ["q_proj"]),
        (["optim=adamw"], "optim.betas", [0.8, 0.9]),
        ([], "optim.schedule_options", {"min_lr_rate": 0.1}),
        ([], "dataset.shapes.seed", 7),
        (["dataset=digits"], "dataset.digits.repeat", 2),
        ([], "dataset.shapes.system_prompt", "Be brief."),
    ],
)
def test_a_nested_value_is_reached_from_the_command_line(choices: list[str], key: str, value: Any) -> None:
    typed = str(value).replace("'", "").replace(": ", ":")
    plus = "+" if isinstance(value, dict) else ""
    config, _ = compose(*choices, f"{plus}{key}='{typed}'" if isinstance(value, str) else f"{plus}{key}={typed}")
    found: Any = config
    for part in key.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert (list(found) if isinstance(value, list) else found) == value


def test_each_value_of_another_command_stands_in_its_yaml() -> None:
    shown = yaml.safe_load((CONF / "merge.yaml").read_text())
    assert set(shown) - {"defaults", "hydra"} == set(MergeConfig.model_fields)
    assert all(field.is_required() for field in MergeConfig.model_fields.values())


def test_cfg_job_shows_every_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app("train", TrainConfig, lambda config, composition: 1, argv=["--cfg", "job", "--resolve"]) == 0
    out = capsys.readouterr().out
    assert "???" not in out
    shown = yaml.safe_load(out)
    config = validate(TrainConfig, shown)
    unshown = [
        f"{path}.{name}"
        for path, spec in specs_in(config)
        for name in type(spec).model_fields.keys() - spec.model_fields_set
        if not path.startswith(ENTRIES)
    ]
    assert unshown == []
