import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.data.making import save_picture
from vlmft.config.spec import validate
from vlmft.data import DatasetSpec, ImageFolderDataset
from vlmft.data.check import check
from vlmft.data.split import split_holdout
from vlmft.errors import ConfigError, DataError
from vlmft.types import Image, Labels, Message, Solution

ANSWERS = {"nowildfire": "No", "wildfire": "Yes"}


@pytest.fixture
def fires(tmp_path: Path) -> Path:
    """train/ and valid/, with a folder a class."""
    for name in (
        "train/wildfire/b.jpg",
        "train/wildfire/a.png",
        "train/nowildfire/2.JPG",
        "train/nowildfire/deep/1.jpg",
    ):
        save_picture(tmp_path / name)
    save_picture(tmp_path / "train/wildfire/.hidden.jpg")
    save_picture(tmp_path / "train/.cache/x.jpg")
    save_picture(tmp_path / "valid/wildfire/c.png", colour="blue")
    return tmp_path


def entry(root: Path, **keys: Any) -> ImageFolderDataset:
    return ImageFolderDataset(**({"root": root, "data_path": "train", "answers": ANSWERS} | keys))


def test_questions_and_answers(fires):
    written = {
        "_target_": "vlmft.data.ImageFolderDataset",
        "data_path": str(fires / "train"),
        "answers": ANSWERS,
        "question": "Does it burn here ({classes})?",
        "system_prompt": "S",
    }
    source = pickle.loads(pickle.dumps(validate(DatasetSpec, written).open("fires")))
    assert [source[row].id for row in range(len(source))] == [
        "fires/nowildfire/2.JPG",
        "fires/nowildfire/deep/1.jpg",
        "fires/wildfire/a.png",
        "fires/wildfire/b.jpg",
    ]
    assert source[2].messages == (
        Message("system", ("S",)),
        Message("user", (Image(fires / "train/wildfire/a.png"), "Does it burn here (No, Yes)?")),
        Message("assistant", ("Yes",)),
    )
    assert [source[row].messages[2].text for row in range(4)] == ["No", "No", "Yes", "Yes"]
    assert source[2].place == f"{fires}/train/wildfire/a.png, row 2"
    assert check([(source, range(4))], 10).problems == []


def test_without_answers_the_folders_names_are_the_classes(fires):
    spec = entry(fires, answers=None, eval_data_path="valid")
    assert spec.class_names == ("nowildfire", "wildfire")
    sample = spec.open("fires")[3]
    assert sample.messages[0].text == "Which of these does the image show: nowildfire, wildfire?"
    assert sample.messages[1].text == "wildfire"
    held_out = spec.open_eval("fires")
    assert held_out[0].id == "fires/wildfire/c.png"
    assert held_out[0].messages[0].text == sample.messages[0].text
    assert entry(fires).open_eval("fires") is None


@pytest.mark.parametrize(("task", "target"), [("solution", Solution("Yes")), ("classification", Labels(("Yes",)))])
def test_the_answer_as_a_target(fires, task, target):
    sample = entry(fires, task=task).open("fires")[2]
    assert sample.target == target
    assert [message.role for message in sample.messages] == ["user"]


def test_several_folders_may_mean_the_same(fires):
    save_picture(fires / "train/smoke/s.png")
    spec = entry(fires, answers=ANSWERS | {"smoke": "Yes"})
    assert spec.class_names == ("No", "Yes")
    source = spec.open("fires")
    assert source[2].id == "fires/smoke/s.png"
    assert source[2].messages[0].text == "Which of these does the image show: No, Yes?"


def test_the_fingerprint_follows_names_and_sizes(fires):
    first = entry(fires).open("fires").fingerprint()
    assert first == entry(fires).open("fires").fingerprint()
    assert first["rows"] == 4
    save_picture(fires / "train/wildfire/a.png", (40, 40))
    second = entry(fires).open("fires").fingerprint()
    os.rename(fires / "train/wildfire/a.png", fires / "train/wildfire/z.png")
    third = entry(fires).open("fires").fingerprint()
    assert len({found["sha256"] for found in (first, second, third)}) == 3


def test_a_share_may_be_held_out(tmp_path):
    for i in range(40):
        save_picture(tmp_path / "train" / ("wildfire", "nowildfire")[i % 2] / f"{i}.png")
    train, held = split_holdout(entry(tmp_path).open("fires"), 0.25)
    assert len(train) + len(held) == 40 and 3 <= len(held) <= 17


def test_a_damaged_picture_is_found_when_it_is_read(fires):
    (fires / "train/wildfire/b.jpg").write_bytes(b"\xff\xd8\xff")
    source = entry(fires).open("fires")
    (problem,) = check([(source, range(4))], 10).problems
    assert problem.startswith(f"fires/wildfire/b.jpg ({fires}/train/wildfire/b.jpg, row 3): ")


def test_a_symlink_out_of_the_folder_is_found_when_it_is_read(fires):
    (fires / "train/wildfire/b.jpg").unlink()
    (fires / "train/wildfire/b.jpg").symlink_to(fires / "valid/wildfire/c.png")
    (problem,) = check([(entry(fires).open("fires"), range(4))], 10).problems
    assert "is or passes a symlink that leads out of media_dir" in problem


def test_every_foreign_file_is_listed(fires):
    (fires / "train/wildfire/notes.txt").write_text("x")
    (fires / "train/README").write_text("x")
    (fires / "train/wildfires").mkdir()
    (fires / "train/wildfire/linked").symlink_to(fires / "valid")
    with pytest.raises(DataError) as caught:
        entry(fires).open("fires")
    train = fires / "train"
    assert caught.value.problems == (
        f"fires: {train}/README lies beside the classes' folders; move it, or name it in ignore",
        f"fires: {train}/wildfire/linked is a symlink to a folder; move the folder itself here",
        f"fires: {train}/wildfire/notes.txt is no picture (.jpg, .jpeg, .png, .webp, .bmp, .gif, .tif, .tiff, .avif, "
        ".ppm, .jp2); move it, or name it in ignore",
        f"fires: {train}/wildfires is the folder of no known class; did you mean wildfire?",
    )
    (train / "wildfires").rmdir()
    (train / "wildfire/linked").unlink()
    assert len(entry(fires, ignore=["*.txt", "READ*"]).open("fires")) == 4


def test_a_long_list_is_cut_with_its_number(fires):
    for i in range(15):
        (fires / f"train/wildfire/{i}.txt").write_text("x")
    with pytest.raises(DataError) as caught:
        entry(fires).open("fires")
    assert len(caught.value.problems) == 11
    assert caught.value.problems[-1] == f"fires: {fires}/train: 5 more files or folders cannot be used"


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        (
            {"data_path": "none"},
            "^fires: data_path .*/none is not a folder; give the folder that holds a folder a class",
        ),
        ({"eval_data_path": "none"}, "^fires: eval_data_path .*/none is not a folder"),
        (
            {"data_path": "train/wildfire", "answers": None},
            "^fires: data_path .*: two classes or more are needed; found 0",
        ),
        (
            {"answers": {"fire": "Yes", "none": "No"}},
            r"nowildfire is the folder of no known class; did you mean fire\?",
        ),
        (
            {"answers": {"x": "Yes", "y": "No"}},
            r"is the folder of no known class; add it to answers \(which has x, y\)",
        ),
        ({"data_path": "empty"}, "^fires: .*/empty holds no folder of a class; expected nowildfire, wildfire"),
        ({"data_path": "hollow"}, "^fires: .*/hollow/wildfire holds no picture; add some, or remove the folder"),
        ({"data_path": "linked"}, "^fires: .*/linked/wildfire is a symlink to a folder; move the folder itself here"),
        ({"data_path": "named"}, rb"named/wildfire/\\xff\.png' has a name that is not UTF-8; rename it".decode()),
    ],
)
def test_entries_that_cannot_be_opened(fires, keys, match):
    (fires / "hollow/wildfire").mkdir(parents=True)
    (fires / "empty").mkdir()
    (fires / "linked").mkdir()
    (fires / "linked/wildfire").symlink_to(fires / "train/wildfire")
    (fires / "named/wildfire").mkdir(parents=True)
    (fires / os.fsdecode(b"named/wildfire/\xff.png")).write_bytes(b"x")
    spec = entry(fires, **keys)
    with pytest.raises(DataError, match=match):
        (spec.open_eval if "eval_data_path" in keys else spec.open)("fires")


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"answers": {"a": " ", "b": "B"}}, r"^answers\.a: String should match pattern"),
        ({"answers": {"a": False, "b": "B"}}, r"^answers\.a: Input should be a valid string \(found False\)"),
        ({"task": "grpo"}, "^task: Input should be 'qa', 'solution' or 'classification'"),
        ({"question": ""}, "^question: "),
    ],
)
def test_keys_that_are_refused(keys, match):
    with pytest.raises(ConfigError, match=match):
        validate(ImageFolderDataset, {"data_path": "x"} | keys)
