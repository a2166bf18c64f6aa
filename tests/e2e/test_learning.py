"""The first families learn a real task: they look at the default pictures and say the colour that is asked for."""

import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from tests.e2e.conftest import Typed

FIRST = (
    "qwen2vl",
    "qwen25vl",
    "qwen3vl",
    "qwen3vl_moe",
    "internvl3",
    "llava15",
    "llava_onevision",
    "smolvlm",
    "gemma3",
)


def blind(predictions: Path) -> float:
    """What who never looks at a picture gets right at best: the most frequent answer to each question."""
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for line in predictions.read_text().splitlines():
        row = json.loads(line)
        answers[row["question"]][row["reference"]] += 1
    counted = answers.values()
    return sum(max(found.values()) for found in counted) / sum(found.total() for found in counted)


@pytest.mark.slow
@pytest.mark.parametrize("family", FIRST)
def test_learns_the_default_pictures(typed: Typed, family: str) -> None:
    """Twice what is right without looking, at the lower end of the interval: no luck, and nothing but the pictures.

    100 steps take each family to 0.7 or more; a run takes about 20 seconds of one core.
    """
    words = ("recipe=fft", "trainer.max_steps=100", "evaluation.base=false", "dataset.shapes.eval_samples=150")
    ended = typed(f"model=tiny_{family}", *words)
    assert ended.code == 0, ended.err
    guessed = blind(ended.run / "predictions/tuned.jsonl")
    assert 0.15 < guessed < 0.35  # six colours, four backgrounds
    scores = ended.result["eval"]
    assert scores["n"] == 150
    assert scores["intervals"]["tuned"]["exact_match"][0] > 2 * guessed
