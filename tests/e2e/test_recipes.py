"""Recipes and optimisers from the command line to answers in a new process.

One of each kind: tests/recipes trains, saves and reloads every shipped recipe in shared processes.
"""

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Ended, Typed, losses, typed_in
from vlmft.config.app import load_config
from vlmft.evaluation.answers import Answer
from vlmft.evaluation.generate import Evaluator
from vlmft.train import TrainConfig

RECIPES = ("fft", "projector", "topk", "ln_vt_lora_llm", "fft_vt_lora_llm", "lora_llm_nf4", "lora_llm_int8", "dora_llm")
OPTIMISERS = ("adamw_8bit", "adafactor", "muon", "transformers")
SHORT = (
    "trainer.max_steps=5",
    "dataset.shapes.train_samples=200",
    "dataset.shapes.eval_samples=24",
    "evaluation.base=false",
    "evaluation.max_new_tokens=8",
)


def assert_answers_again(ended: Ended) -> None:
    """Load `final` here, which is not the process that trained, and answer as it did."""
    import vlmft
    from vlmft.data.run_data import open_run_data
    from vlmft.encoding.collate import Collator
    from vlmft.encoding.encoder import Encoder

    config = load_config(ended.run / "config.yaml", TrainConfig)
    model, processor = vlmft.load(ended.run / "final")
    data = open_run_data(config.dataset, config.eval_dataset, config.holdout, config.seed)
    parts = (Encoder(config.model, processor), Collator(config.model, processor))
    samples = data.held_out_samples(None)
    found = Evaluator(config.evaluation, *parts, samples, config.metric).answer(model)  # type: ignore[arg-type]
    rows = [json.loads(line) for line in (ended.run / "predictions" / "tuned.jsonl").open()]
    assert found == [Answer(**row) for row in rows]
    assert len(found) == 24


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [(f"recipe={recipe}",) for recipe in RECIPES]
    + [("recipe=lora_llm", f"optim={optim}") for optim in OPTIMISERS]
    + [("recipe=lora_llm", "precision=bf16"), ("recipe=fft", "precision=bf16", "trainer.gradient_checkpointing=true")],
    ids=lambda words: "-".join(word.rpartition("=")[2] for word in words),
)
def test_trains_saves_and_answers_again(typed: Typed, words: tuple[str, ...]) -> None:
    ended = typed(*words, *SHORT)
    assert ended.code == 0, ended.err
    assert ended.err == ""
    assert len(losses(ended.run)) == 5
    if "recipe=projector" not in words:  # it learns little in five steps
        assert losses(ended.run)[-1] < losses(ended.run)[0]
    assert_answers_again(ended)


@pytest.mark.slow
def test_begins_where_an_earlier_run_ended(tmp_path: Path) -> None:
    """What it answers before its first step is, word for word, what the earlier run answered after its last."""
    first = typed_in(folder(tmp_path, "first"), "recipe=lora_vt_llm", *SHORT)
    assert first.code == 0, first.err
    words = (*SHORT, "evaluation.base=true", "seed=1", "trainer.max_steps=1")
    second = typed_in(folder(tmp_path, "second"), "recipe=lora_vt_llm", f"model.adapter={first.run}", *words)
    assert second.code == 0, second.err
    before, after = second.run / "predictions" / "base.jsonl", first.run / "predictions" / "tuned.jsonl"
    assert before.read_text() == after.read_text()
    assert json.loads((second.run / "final" / "vlmft.json").read_text())["model"]["adapter"] is None
    assert_answers_again(second)


def folder(path: Path, name: str) -> Path:
    (path / name).mkdir()
    return path / name
