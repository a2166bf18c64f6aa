"""Real handwriting, `python -m vlmft.train dataset=digits`: minutes, so it is marked slow."""

import json

import PIL.Image
import pytest

from tests.e2e.conftest import Typed
from vlmft.config.app import load_config
from vlmft.train import TrainConfig

pytest.importorskip("sklearn")


@pytest.mark.slow
def test_digits_are_read(typed: Typed) -> None:
    ended = typed("dataset=digits")
    assert ended.code == 0, ended.err
    scores = ended.result["eval"]
    assert scores["n"] == 400
    assert scores["base"]["exact_match"] <= 0.4
    assert scores["tuned"]["exact_match"] >= 0.85
    assert scores["p_value"] < 0.01
    answered = {row["reference"] for row in map(json.loads, (ended.run / "predictions" / "tuned.jsonl").open())}
    assert answered == set("0123456789")

    config = load_config(ended.run / "config.yaml", TrainConfig)
    spec = config.dataset["digits"]
    train, held_out = spec.open("digits"), spec.open_eval("digits")
    assert held_out is not None and len(train) + len(held_out) == 1797
    pixels = [
        {PIL.Image.open(image.path).tobytes() for row in range(len(source)) for image in source[row].images}
        for source in (train, held_out)
    ]
    assert pixels[0].isdisjoint(pixels[1])
