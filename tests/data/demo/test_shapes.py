import hashlib
import json
import time
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from vlmft.data import Shapes
from vlmft.data.check import check
from vlmft.data.demo.shapes_files import BACKGROUNDS, COLOURS
from vlmft.data.split import refuse_overlap


def shapes(**keys) -> Shapes:
    return Shapes(**({"train_samples": 400, "eval_samples": 300, "image_size": 56, "seed": 0} | keys))


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return shapes().open("shapes"), shapes().open_eval("shapes")


def every_row(*sources):
    return [(source, range(len(source))) for source in sources]


def test_it_is_a_llava_dataset_on_disk(opened, tmp_path):
    train, held_out = opened
    assert (len(train), len(held_out)) == (400, 300)
    report = check(every_row(train, held_out), 30)
    assert report.complete
    assert report.problems == []
    row = json.loads(train.data_file.read_text())[0]
    assert set(row) == {"id", "image", "conversations"}
    assert row["conversations"][0]["value"].startswith("<image>\n")
    assert train.data_file.parent.parent.name == "datasets"
    assert Image.open(train[0].images[0].path).size == (56, 56)


def test_no_two_pictures_are_equal(opened):
    train, held_out = opened
    paths = [image.path for source in opened for row in range(len(source)) for image in source[row].images]
    assert len(paths) == len(set(paths)) > 700
    assert len({Image.open(path).tobytes() for path in paths}) == len(paths)
    refuse_overlap(every_row(train), every_row(held_out))


def test_forms(opened):
    for source in opened:
        samples = [source[row] for row in range(len(source))]
        two_turns = sum(len(sample.messages) == 4 for sample in samples) / len(samples)
        two_pictures = sum(len(sample.images) == 2 for sample in samples) / len(samples)
        assert two_turns == pytest.approx(0.3)
        assert two_pictures == pytest.approx(0.05)
        for sample in samples:
            assert sample.messages[-1].text in (*COLOURS, *BACKGROUNDS)
            if len(sample.messages) == 4:
                assert (sample.messages[1].text in COLOURS) != (sample.messages[3].text in COLOURS)


def test_answers_are_true_of_the_picture(opened):
    """Find both colours again from the pixels alone: the ground in the corners, the shape where it differs."""
    for row in range(len(opened[1])):
        sample = opened[1][row]
        said = [message.text for message in sample.messages if message.role == "assistant"]
        picture = sample.images["second" in sample.messages[0].text]
        pixels = np.asarray(Image.open(picture.path)).astype(int)
        ground = np.median([pixels[y, x] for y in (0, -1) for x in (0, -1)], axis=0)
        ink = (np.abs(pixels - ground) > 60).any(-1)
        background = min(BACKGROUNDS, key=lambda name: np.abs(ground - BACKGROUNDS[name]).sum())
        mean = pixels[ink].mean(0)
        colour = min(COLOURS, key=lambda name: np.abs(mean - COLOURS[name]).sum())
        for answer in said:
            assert answer == (colour if answer in COLOURS else background)


def test_the_best_guess_without_the_picture_stays_below_0_3(opened):
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for row in range(len(opened[1])):
        question, answer = opened[1][row].messages[-2:]
        answers[question.text][answer.text] += 1
    assert len(answers) == 7
    for counted in answers.values():
        assert max(counted.values()) - min(counted.values()) <= 2
        assert max(counted.values()) / counted.total() < 0.3
    assert sum(max(counted.values()) for counted in answers.values()) == 64  # of 300


def test_an_earlier_answer_gives_the_later_one_not_away(opened):
    pairs: dict[str, Counter[str]] = defaultdict(Counter)
    for row in range(len(opened[0])):
        texts = [message.text for message in opened[0][row].messages]
        if len(texts) == 4:
            pairs[texts[1]][texts[3]] += 1
    assert all(max(counted.values()) / counted.total() < 0.7 for counted in pairs.values() if counted.total() > 8)


def digest(folder) -> str:
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*.*")):
        whole.update(path.name.encode() + path.read_bytes())
    return whole.hexdigest()


def test_the_same_parameters_give_the_same_files(monkeypatch, tmp_path):
    found = []
    for cache in ("one", "two"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
        found.append(shapes(train_samples=30, eval_samples=30).open("shapes").data_file.parent)
    assert found[0].name == found[1].name
    assert digest(found[0]) == digest(found[1])


def test_other_parameters_have_another_folder():
    few = {"train_samples": 5, "eval_samples": 5}
    folders = {
        shapes(**few, **keys).open("shapes").data_file.parent.name
        for keys in ({}, {"seed": 1}, {"image_size": 28}, {"factor": 2, "repeat": 3, "system_prompt": "S"})
    }
    assert len(folders) == 3, "what does not change the files does not change the folder"


def test_the_system_prompt_is_passed_on():
    source = shapes(train_samples=5, eval_samples=5, system_prompt="Answer with one word.").open("shapes")
    assert source[0].messages[0].text == "Answer with one word."


def test_the_default_dataset_takes_seconds():
    start = time.process_time()
    shapes(train_samples=6000).open("shapes")
    assert time.process_time() - start < 15
