"""trainer=classification as a user types it."""

import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from safetensors.torch import load_file

from tests.e2e.conftest import Typed, entry, read_lines, read_result, run_here
from tests.e2e.test_ranks import SAME
from tests.training.classifying import write_labelled

CLASSIFY = ("trainer=classification", "strategy.device=cpu")
MINE = {"_target_": "vlmft.data.ClassificationDataset", "data_path": "data/labelled.json"}
LABELS = ["cat", "dog", "fish"]
FIGURES = {"accuracy", "auroc", *(f"{f}_{a}" for f in ("f1", "precision", "recall") for a in ("macro", "micro"))}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A root with the entry `mine`: six labelled samples with no, one and two pictures, and a video."""
    (tmp_path / "home/data").mkdir(parents=True)
    write_labelled(tmp_path / "home/data")
    entry(tmp_path / "home", "mine", **MINE, labels=LABELS)
    return tmp_path / "home"


@pytest.mark.slow
def test_learns_by_command_and_its_saved_model_predicts_the_same(typed: Typed) -> None:
    words = ("dataset=demo_classification", "recipe=lora_llm", "trainer/loss=focal", "trainer/sampler=balanced")
    ended = typed(*CLASSIFY, *words)
    assert ended.code == 0, ended.err
    result = ended.result
    assert result["state"] == "done" and result["steps"] == 75
    assert result["eval"]["tuned"].keys() == FIGURES
    assert result["eval"]["base"]["accuracy"] == pytest.approx(1 / 6)
    assert result["eval"]["tuned"]["accuracy"] > 0.8 and result["eval"]["p_value"] < 1e-6
    low, high = result["eval"]["intervals"]["tuned"]["f1_macro"]
    assert result["eval"]["base"]["f1_macro"] < low < result["eval"]["tuned"]["f1_macro"] < high
    assert "always red" in ended.out and "linear, 6 classes" in ended.out
    with PIL.Image.open(ended.run / "confusion.png") as picture:
        assert min(picture.size) > 300
    figures = [line for line in ended.lines if "loss" in line]
    assert figures[0]["accuracy"] < figures[-1]["accuracy"] and "loss/red" in figures[0]
    assert figures[0]["samples_per_s"] > 0 and figures[0]["supervised_tokens_per_s"] == 0

    import vlmft
    from vlmft.config.app import load_config
    from vlmft.data.run_data import open_run_data
    from vlmft.encoding.collate import Collator
    from vlmft.encoding.encoder import Encoder
    from vlmft.models.tower import use_fast_tower
    from vlmft.train import TrainConfig
    from vlmft.types import Labels

    config = load_config(ended.run / "config.yaml", TrainConfig)
    samples = open_run_data(config.dataset, {}, 0.0, 0).held_out_samples(None)
    model, processor, classes = vlmft.load_classifier(ended.run)
    encoder, collator = Encoder(config.model, processor, learns=Labels), Collator(config.model, processor)
    written = [json.loads(line) for line in (ended.run / "predictions/tuned.jsonl").read_text().splitlines()]
    assert [row["id"] for row in written] == [sample.id for sample in samples]
    group = [encoder.encode_prompt(sample) for sample in samples[:32]]
    use_fast_tower(model)  # as the run's own was: another order of sums is another last bit
    found = model(**collator.on_device(group, model)[0]).double().softmax(-1)
    assert [classes.names[int(row.argmax())] for row in found] == [row["prediction"] for row in written[:32]]
    assert found.tolist() == [list(row["probabilities"].values()) for row in written[:32]]


@pytest.mark.slow
def test_stops_early_and_ends_with_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("dataset=demo_classification", "recipe=fft", "evaluation.max_samples=40", "preview=0", "check_s=0")
    judged = ("evaluation.every_steps=3", "evaluation.best_by=accuracy", "evaluation.base=false")
    stop = ("trainer.early_stopping.patience=2", "trainer.early_stopping.threshold=1.0", "trainer.num_workers=0")
    run = tmp_path / "run"
    assert run_here(*CLASSIFY, *words, *judged, *stop, f"run.dir={run}") == 0
    # Nothing beats the first score by 1: two more evaluations are waited for.
    assert "stopped  early, after step 9 of 75 (trainer.early_stopping)" in capsys.readouterr().out
    result = read_result(run)
    assert (result["state"], result["steps"], result["stopped_early"]) == ("done", 9, {"step": 9, "of": 75})
    assert result["samples"] == {"demo_classification": 9 * 16}
    scores = {line["step"]: line["eval/accuracy"] for line in read_lines(run) if "eval/accuracy" in line}
    assert list(scores) == [3, 6, 9]
    assert result["best"]["score"] == max(scores.values()) == result["eval"]["tuned"]["accuracy"]
    assert scores[result["best"]["step"]] == max(scores.values())


@pytest.mark.slow
def test_two_ranks_train_what_one_does(typed: Typed, home: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Pictures, a video and text; the sampler's stream, the loss, its figures and the scores are the same."""
    (home / "data/eval.json").write_text(json.dumps(_reworded(home / "data/labelled.json")))
    entry(home, "mine", **MINE, labels=LABELS, eval_data_path="data/eval.json")
    same = [word for word in SAME if word != "evaluation=none"]
    words = (*same, *CLASSIFY, "recipe=lora_llm", "trainer/sampler=balanced", "trainer/loss=class_balanced_focal")
    ended = typed(*words, "strategy.ranks=2", VLMFT_PATH=str(home))
    assert ended.code == 0, ended.err
    monkeypatch.setenv("VLMFT_PATH", str(home))
    assert run_here(*words, f"run.dir={tmp_path / 'alone'}") == 0
    runs = (tmp_path / "alone", ended.run)
    for one, two in zip(*([line for line in read_lines(run) if "loss" in line] for run in runs), strict=True):
        said = {name for name in one if name.startswith(("loss", "accuracy", "grad_norm"))}
        assert {"loss", "accuracy"} < said <= two.keys()
        assert {name: two[name] for name in said} == pytest.approx({name: one[name] for name in said}, rel=1e-4)
    for file in ("head.safetensors", "adapter_model.safetensors"):
        weights, others = (load_file(run / "final" / file) for run in runs)
        assert weights.keys() == others.keys()
        assert max(float((weights[name] - others[name]).abs().max()) for name in weights) < 1e-5
        assert max(float(tensor.abs().max()) for tensor in weights.values()) > 1e-3
    scores = [read_result(run)["eval"]["tuned"] for run in runs]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def _reworded(data_file: Path) -> list[dict[str, Any]]:
    """The rows with another question, as held-out samples may not be those trained on."""
    rows, asked = json.loads(data_file.read_text()), {"prompt": "So, which animal is it?"}
    return [row | asked | {"id": f"eval-{row['id']}"} for row in rows if "video" not in row]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "fields", "words", "message"),
    [
        (7, {}, (), "mine/one (DATA:1, row 0): its 'label' holds 7; expected one of cat, dog, fish"),
        ("cow", {}, (), "mine/one (DATA:1, row 0): its 'label' holds 'cow'; expected one of cat, dog, fish"),
        ("cat", {"labels": ["cat"]}, (), "dataset.mine: labels: two classes or more are needed; found 1"),
        (
            "cat",
            {"labels": [*LABELS, "cow"]},
            ("trainer/loss=class_balanced",),
            "trainer.loss.beta: cow has no training sample, so there is no class-balanced weight; add samples, take "
            "the class out of labels, or set beta to null",
        ),
        (
            "cat",
            {},
            ("trainer.early_stopping.patience=3",),
            "trainer.early_stopping.patience: counts evaluations by their score; say after which steps",
        ),
    ],
)
def test_bad_input_is_answered_before_anything_is_loaded(
    typed: Typed, home: Path, label: Any, fields: dict[str, Any], words: tuple[str, ...], message: str
) -> None:
    rows = json.loads((home / "data/labelled.json").read_text())
    (home / "data/labelled.json").write_text(json.dumps([rows[0] | {"label": label}, *rows[1:]]))
    entry(home, "mine", **MINE, **({"labels": LABELS} | fields))
    ended = typed(*CLASSIFY, "dataset=mine", *words, VLMFT_PATH=str(home))
    assert ended.code == 2 and ended.out == ""
    expected = message.replace("DATA", str(home / "data/labelled.json"))
    assert any(error.startswith(expected) for error in ended.errors), ended.errors
    assert list(ended.folder.iterdir()) == []
