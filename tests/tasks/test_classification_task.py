"""What is refused of a classification's config and data before any weight is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import compose, literally
from tests.training.classifying import labelled_config, opened_data, write_labelled
from vlmft.config.app import Composition
from vlmft.data import ClassificationDataset
from vlmft.errors import ConfigError, DataError
from vlmft.tasks import task_of
from vlmft.tasks.classification import ClassificationTask
from vlmft.train import TrainConfig
from vlmft.types import Classes
from vlmft.validate import ValidateConfig, validate

COUNTS = "trainer.early_stopping.patience: counts evaluations by their score"
JUDGED = ("evaluation.every_steps=5", "evaluation.best_by=f1_macro")


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    return write_labelled(tmp_path / "data")


def task(config: TrainConfig) -> ClassificationTask:
    found = task_of(config)
    assert isinstance(found, ClassificationTask)
    return found


def relabelled(data_file: Path, *labels: Any) -> Path:
    """The same rows with these labels, as many as there are."""
    rows = json.loads(data_file.read_text())
    data_file.write_text(json.dumps([row | {"label": label} for row, label in zip(rows, labels, strict=False)]))
    return data_file


def test_the_classes_are_those_of_all_entries(data_file: Path) -> None:
    config = labelled_config(data_file)
    assert task(config).classes == Classes(("cat", "dog", "fish"))
    other = ClassificationDataset(data_path=data_file, labels=("dog", "cat", "fish"))
    for key in ("dataset", "eval_dataset"):
        entries = getattr(config, key) | {"other": other}
        with pytest.raises(ConfigError, match="dataset: mine has one of the classes cat, dog, fish, other has one of"):
            task(config.model_copy(update={key: entries})).check()


def test_an_entry_of_conversations_is_refused(data_file: Path) -> None:
    with pytest.raises(ConfigError, match="dataset: the samples of shapes have no classes; trainer=classification"):
        task(compose("trainer=classification")).check()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("trainer.early_stopping.patience=2",), COUNTS),
        (
            ("trainer.early_stopping.patience=2", "evaluation=none"),
            COUNTS,
        ),
        (
            ("evaluation.every_steps=5", "evaluation.best_by=exact_match"),
            "evaluation.best_by: 'exact_match' is not among this run's metrics: accuracy, f1_macro",
        ),
    ],
)
def test_a_contradiction_of_the_config_is_refused(data_file: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=literally(message)):
        task(labelled_config(data_file, *words)).check()
    task(labelled_config(data_file, *JUDGED, "trainer.early_stopping.patience=2")).check()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat", "dog", 3], "mine/none (FILE:1, row 2): its 'label' holds 3; expected one of cat, dog, fish"),
        (
            ["cat", "dgo"],
            "mine/two (FILE:1, row 1): its 'label' holds 'dgo'; expected one of cat, dog, fish; did",
        ),
        (["cat"] * 4, "dataset: all 4 training samples are of one class (cat); there is nothing to tell apart"),
    ],
)
def test_a_label_that_cannot_be_learned_is_refused(data_file: Path, labels: list[Any], message: str) -> None:
    config = labelled_config(relabelled(data_file, *labels))
    with pytest.raises((ConfigError, DataError), match=literally(message.replace("FILE", str(data_file)))):
        task(config).prepare(opened_data(config))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trainer/loss=class_balanced", "trainer.loss.beta: fish has no training sample"),
        ("trainer/loss=class_balanced_focal", "trainer.loss.beta: fish has no training sample"),
        ("trainer/sampler=balanced", "trainer.sampler: there is no training sample to be drawn for fish"),
        ("trainer/sampler=weighted", "trainer.sampler.weights: no weight for cat, dog, fish; the classes are cat, dog"),
    ],
)
def test_an_empty_class_is_named_where_it_would_be_weighed_or_drawn(data_file: Path, word: str, message: str) -> None:
    relabelled(data_file, "cat", "dog", "cat", "dog")
    config = labelled_config(data_file, word)
    with pytest.raises(ConfigError, match=literally(message)):
        task(config).prepare(opened_data(config))
    config = labelled_config(data_file)
    made = task(config)
    made.prepare(opened_data(config))
    assert made.counts == {"cat": 2, "dog": 2, "fish": 0}


def test_validate_says_it_as_well(data_file: Path, tmp_path: Path) -> None:
    """After all samples have been looked at, and whatever they are."""
    config = labelled_config(relabelled(data_file, "cat", "dog", "cat", "dog"), "trainer/loss=class_balanced")
    alone = {"mine": config.dataset["mine"].model_copy(update={"eval_data_path": None})}
    choices = dict(config) | {"dataset": alone}
    scan = ValidateConfig(**choices, out=tmp_path / "out", show=0, tokens=False, decode=False, num_workers=1)
    with pytest.raises(ConfigError, match=literally("trainer.loss.beta: fish has no training sample")):
        validate(scan, Composition("", (), tmp_path / "run", {}, None, False))
    assert (tmp_path / "out/summary.json").is_file()


def test_alpha_and_temperature_must_fit(data_file: Path) -> None:
    config = labelled_config(data_file, "trainer/loss=focal", "trainer.loss.alpha=[1,2]")
    with pytest.raises(ConfigError, match="trainer.loss.alpha: 2 weights for 3 classes"):
        task(config).prepare(opened_data(config))
    config = labelled_config(data_file, "trainer/sampler=balanced", "mixing_temperature=2.0")
    with pytest.raises(ConfigError, match="mixing_temperature: evens out the entries' shares of the stream"):
        task(config).prepare(opened_data(config))


def test_the_sampler_s_stream_is_what_the_run_trains_on(data_file: Path) -> None:
    words = ("trainer/sampler=weighted", "trainer.sampler.weights={cat:1,dog:1,fish:4}")
    config = labelled_config(data_file, words[0], f"+{words[1]}")
    data = task(config).prepare(opened_data(config))
    names = [data.mixture.read(data.mixture.at(position)).target.names[0] for position in range(60)]  # type: ignore[union-attr]
    assert {name: names.count(name) for name in names} == {"cat": 10, "dog": 10, "fish": 40}
    plain = labelled_config(data_file)
    opened = opened_data(plain)
    assert task(plain).prepare(opened) is opened


def test_a_user_s_own_sampler_is_asked(data_file: Path) -> None:
    from collections.abc import Mapping

    from vlmft.training import SamplerSpec

    class RootOfCount(SamplerSpec):
        """As the square root of each class's samples."""

        def shares(self, counts: Mapping[str, int]) -> Mapping[str, float]:
            return {name: count**0.5 for name, count in counts.items()}

    config = labelled_config(relabelled(data_file, "cat", "cat", "cat", "cat", "dog", "fish"))
    config = config.model_copy(update={"trainer": config.trainer.model_copy(update={"sampler": RootOfCount()})})
    data = task(config).prepare(opened_data(config))
    names = [data.mixture.read(data.mixture.at(position)).target.names[0] for position in range(40)]  # type: ignore[union-attr]
    assert {name: names.count(name) for name in names} == {"cat": 20, "dog": 10, "fish": 10}
