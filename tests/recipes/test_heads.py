import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vlmft
from tests.merging.support import merge
from tests.support import literally
from tests.training.classifying import CLASSES, ClassBench, class_bench, labelled_config, shake_head, write_labelled
from vlmft.errors import ConfigError
from vlmft.models import LinearHead
from vlmft.models.classifier import Head
from vlmft.recipes.heads import HeadRecord, load_classifier, load_earlier_head
from vlmft.recipes.saved import hash_weights, load, save
from vlmft.types import Classes


def trained(folder: Path, recipe: str, *words: str, precision: str = "fp32") -> tuple[ClassBench, Path]:
    """Two steps of training, saved as a worker saves; the bench, its model in eval mode, and the final folder."""
    config = labelled_config(write_labelled(folder / "data"), f"recipe={recipe}", "trainer.max_steps=2", *words)
    made = class_bench(folder, config.model_copy(update={"precision": precision}))
    made.trainer.train()
    shake_head(made.model.eval())
    final = folder / "run" / "final"
    said = made.task.save(final, made.model) | {"config": _written(made), "datasets": {}, "packages": {}, "git": {}}
    hashes = hash_weights(config.model.folder())
    processor = made.kit.encoder.processor
    save(final, made.task.backbone(made.model), processor, config.model, config.recipe, precision, hashes, (), said)
    return made, final


def _written(made: ClassBench) -> str:
    import yaml

    return yaml.safe_dump(made.config.to_config())


@pytest.fixture(scope="module")
def of_lora(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClassBench, Path]:
    return trained(tmp_path_factory.mktemp("lora"), "lora_llm", "trainer/head=mlp")


@pytest.mark.parametrize(
    ("recipe", "precision"),
    [
        ("lora_llm_nf4", "bf16"),
        *(
            pytest.param(recipe, precision, marks=pytest.mark.slow)
            for recipe in ("fft", "projector", "ln_vt_lora_llm")
            for precision in ("fp32", "bf16")
        ),
    ],
)
def test_a_loaded_classifier_predicts_what_the_trained_one_does(tmp_path: Path, recipe: str, precision: str) -> None:
    if recipe.endswith("nf4"):
        pytest.importorskip("bitsandbytes")
    made, final = trained(tmp_path, recipe, precision=precision)
    model, _, classes = vlmft.load_classifier(final.parent)
    assert classes == Classes(CLASSES)
    assert not any(p.requires_grad for p in model.parameters()) and not model.training
    assert made.task.backbone(made.model) is made.model.model
    judge = made.task.judge(made.kit)
    assert judge is not None
    expected, found = judge.answer(made.model), judge.answer(model)
    assert found == expected
    assert len({tuple(answer.probabilities.values()) for answer in found}) == 6
    assert load_classifier(final)[0].head.state_dict().keys() == made.model.head.state_dict().keys()


def test_what_is_saved_says_what_it_is(of_lora: tuple[ClassBench, Path]) -> None:
    made, final = of_lora
    record = json.loads((final / "vlmft.json").read_text())["classifier"]
    assert record == {
        "classes": ["cat", "dog", "fish"],
        "multi_label": False,
        "threshold": 0.5,
        "hidden_size": 64,
        "head": made.config.trainer.head.to_config(),  # type: ignore[attr-defined]
    }
    saved = load_file(final / "head.safetensors")
    assert saved.keys() == made.model.head.state_dict().keys()
    assert all(torch.equal(weight, made.model.head.state_dict()[name]) for name, weight in saved.items())


def test_load_would_leave_the_head_behind(of_lora: tuple[ClassBench, Path]) -> None:
    with pytest.raises(ConfigError, match="holds a classifier; vlmft.load_classifier loads it with its head"):
        load(of_lora[1])


def test_another_run_s_model_is_no_classifier(of_lora: tuple[ClassBench, Path], tmp_path: Path) -> None:
    shutil.copytree(of_lora[1], tmp_path / "final")
    record = json.loads((tmp_path / "final/vlmft.json").read_text())
    del record["classifier"]
    (tmp_path / "final/vlmft.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="holds no classification head; load it with vlmft.load"):
        load_classifier(tmp_path)


def test_a_head_with_other_weights_is_refused(of_lora: tuple[ClassBench, Path], tmp_path: Path) -> None:
    shutil.copytree(of_lora[1], tmp_path / "final")
    file = tmp_path / "final/head.safetensors"
    weights = load_file(file)
    first = weights.pop("layers.1.bias")
    save_file(weights | {"layers.9.bias": first}, file)
    says = "1 weights missing ['layers.1.bias'], 1 unexpected ['layers.9.bias']"
    with pytest.raises(ConfigError, match=literally(says)):
        load_classifier(tmp_path)
    save_file(weights | {"layers.1.bias": first[:1]}, file)
    with pytest.raises(ConfigError, match=literally("1 of another shape ['layers.1.bias']")):
        load_classifier(tmp_path)
    file.unlink()
    with pytest.raises(ConfigError, match="head.safetensors: cannot be read"):
        load_classifier(tmp_path)


def test_a_run_may_begin_from_an_earlier_head(of_lora: tuple[ClassBench, Path]) -> None:
    made, final = of_lora
    spec = made.config.trainer.head  # type: ignore[attr-defined]
    head = Head(spec, 64, 3)
    load_earlier_head(final, head, spec, Classes(CLASSES))
    assert all(torch.equal(weight, made.model.head.state_dict()[name]) for name, weight in head.state_dict().items())
    says = "holds a head for cat, dog, fish, hidden layers [256]; this run's is for cat, dog, fish, hidden layers []"
    linear = LinearHead(pooling="last", dropout=0.0, lr_factor=1.0, lr=None)
    with pytest.raises(ConfigError, match=literally(says)):
        load_earlier_head(final, Head(linear, 64, 3), linear, Classes(CLASSES))
    with pytest.raises(ConfigError, match="this run's is for dog, cat, fish"):
        load_earlier_head(final, head, spec, Classes(("dog", "cat", "fish")))


def test_a_record_is_read_as_it_was_written() -> None:
    linear = LinearHead(pooling="mean", dropout=0.1, lr_factor=None, lr=0.1)
    record = HeadRecord(linear, Classes(("a", "b"), True), 64, 0.3)
    assert HeadRecord.of(json.loads(json.dumps(record.to_json()))) == record


@pytest.mark.filterwarnings("ignore")
def test_a_merged_model_keeps_its_head(of_lora: tuple[ClassBench, Path], tmp_path: Path) -> None:
    made, final = of_lora
    merged = merge(tmp_path, final)
    assert (merged / "head.safetensors").read_bytes() == (final / "head.safetensors").read_bytes()
    card = (merged / "README.md").read_text()
    assert "It was trained to tell cat, dog, fish apart, by a head in place of the LM's" in card
    model, _, classes = load_classifier(merged)
    assert classes == Classes(CLASSES) and not hasattr(model.model, "peft_config")
    judge = made.task.judge(made.kit)
    assert judge is not None
    for found, expected in zip(judge.answer(model), judge.answer(made.model), strict=True):
        assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-4)
