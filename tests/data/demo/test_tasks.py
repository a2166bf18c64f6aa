import json
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from vlmft.data import DemoClassification, DemoDpo, DemoGrpo, DemoKto
from vlmft.data.check import check
from vlmft.data.demo.shapes_files import COLOURS
from vlmft.data.split import refuse_overlap
from vlmft.types import Labels

FEW = {"train_samples": 60, "eval_samples": 24, "image_size": 56, "seed": 0}
TASKS = {"dpo": DemoDpo, "kto": DemoKto, "grpo": DemoGrpo, "classification": DemoClassification}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return {name: (spec(**FEW).open(name), spec(**FEW).open_eval(name)) for name, spec in TASKS.items()}


def colour_of(picture: Image.Image) -> str:
    """The shape's colour, from the pixels alone: they differ from the ground in the corners."""
    pixels = np.asarray(picture).astype(int)
    ground = np.median([pixels[y, x] for y in (0, -1) for x in (0, -1)], axis=0)
    mean = pixels[(np.abs(pixels - ground) > 60).any(-1)].mean(0)
    return min(COLOURS, key=lambda name: np.abs(mean - COLOURS[name]).sum())


def every_sample(opened, task):
    for source in opened[task]:
        for row in range(len(source)):
            sample = source[row]
            yield sample, colour_of(Image.open(sample.images[0].path))


@pytest.mark.parametrize("task", TASKS)
def test_real_files_with_held_out_rows_of_their_own(opened, task):
    train, held_out = opened[task]
    assert (len(train), len(held_out)) == (60, 24)
    assert check([(train, range(60)), (held_out, range(24))], 30).problems == []
    refuse_overlap([(train, range(60))], [(held_out, range(24))])
    pictures = {
        Image.open(source[row].images[0].path).tobytes() for source in opened[task] for row in range(len(source))
    }
    assert len(pictures) == 84
    assert train[0].messages[-1].role == "user"


def test_pairs_prefer_the_true_colour(opened):
    row = json.loads(opened["dpo"][0].data_file.read_text())[0]
    assert set(row) == {"id", "image", "prompt", "chosen", "rejected"}
    for sample, colour in every_sample(opened, "dpo"):
        assert sample.target.chosen == colour
        assert sample.target.rejected in {*COLOURS} - {colour}


def test_every_other_answer_is_the_true_colour_and_the_rest_are_bad(opened):
    row = json.loads(opened["kto"][0].data_file.read_text())[0]
    assert set(row) == {"id", "image", "prompt", "completion", "label"}
    labels = []
    for sample, colour in every_sample(opened, "kto"):
        assert sample.target.answer in COLOURS
        assert sample.target.good == (sample.target.answer == colour)
        labels.append(sample.target.good)
    assert sum(labels[:60]) == 30 and sum(labels[60:]) == 12


def test_solutions_are_true_and_well_formed(opened):
    row = json.loads(opened["grpo"][0].data_file.read_text())[0]
    assert set(row) == {"id", "image", "conversations"}
    assert "<image>" not in row["conversations"][0]["value"]
    for sample, colour in every_sample(opened, "grpo"):
        assert re.fullmatch(rf"<think>.+</think>\s*<answer>{colour}</answer>", sample.target.text, re.DOTALL)


def test_classes_are_true_and_named_by_the_entry(opened):
    row = json.loads(opened["classification"][0].data_file.read_text())[0]
    assert set(row) == {"id", "image", "prompt", "label"}
    assert DemoClassification(**FEW).class_names == tuple(COLOURS)
    for sample, colour in every_sample(opened, "classification"):
        assert sample.target == Labels((colour,))


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_balanced(opened, task):
    held_out = opened[task][1]
    assert {*Counter(colour_of(Image.open(held_out[row].images[0].path)) for row in range(24)).values()} == {4}


@pytest.mark.parametrize("task", TASKS)
def test_the_same_parameters_give_the_same_files(monkeypatch, tmp_path, opened, task):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "again"))
    before, again = opened[task][0].data_file.parent, TASKS[task](**FEW).open("x").data_file.parent
    assert before.name == again.name
    files = [path.relative_to(before) for path in before.rglob("*.*")]
    assert len(files) == 86
    assert all((before / file).read_bytes() == (again / file).read_bytes() for file in files)


def test_what_an_entry_says_is_passed_on():
    few = FEW | {"train_samples": 1, "eval_samples": 1}
    source = DemoDpo(**few, system_prompt="S", image={"max_pixels": 900}).open("x")
    assert source[0].messages[0].text == "S"
    assert source[0].rules.image.max_pixels == 900
