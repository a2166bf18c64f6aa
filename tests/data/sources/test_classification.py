import json
import pickle
from pathlib import Path

import pytest

from tests.data.making import save_picture
from vlmft.config.spec import validate
from vlmft.data import ClassificationDataset
from vlmft.data.sources.classification import parse_labelled
from vlmft.data.sources.parsed import MEDIUM, Reference
from vlmft.errors import ConfigError, DataError
from vlmft.types import Classes, Image, Labels, Message

BOATS = ("ferry", "tug", "yacht", "1")


def test_the_form_that_qwen2_vl_finetune_documents(tmp_path: Path):
    save_picture(tmp_path / "quay.png")
    row = {"id": "c1", "image": "quay.png", "prompt": "Which boat?\n Options:\n 0. Ferry\n 1. Tug", "label": "1"}
    (tmp_path / "boats.json").write_text(json.dumps([row, {"image": "quay.png", "label": 0}]))
    entry = {"data_path": str(tmp_path / "boats.json"), "labels": 2, "prompt": "<image>\nSo?"}
    spec = validate(ClassificationDataset, entry)
    assert spec.class_names == ("0", "1")
    source = pickle.loads(pickle.dumps(spec.open("mine")))
    assert source[0].messages == (Message("user", (Image(tmp_path / "quay.png"), row["prompt"])),)
    assert source[0].target == Labels(("1",))
    assert source[1].messages == (Message("user", (Image(tmp_path / "quay.png"), "So?")),)
    assert source[1].target == Labels(("0",))


@pytest.mark.parametrize(("label", "name"), [("tug", "tug"), (0, "ferry"), (2, "yacht"), ("1", "1"), (3, "1")])
def test_a_label_is_a_name_or_a_position(label, name):
    parsed = parse_labelled({"video": "v.mp4", "label": label}, BOATS, prompt="Which boat?")
    assert parsed.target == Labels((name,))
    assert parsed.media == [Reference("video", "v.mp4")]
    assert [(turn.role, turn.parts) for turn in parsed.turns] == [("user", (MEDIUM, "Which boat?"))]


@pytest.mark.parametrize(
    ("label", "names"), [(["yacht", "ferry"], ("ferry", "yacht")), ([2, "tug"], ("tug", "yacht")), ([], ())]
)
def test_several_labels_come_in_the_order_of_the_classes(label, names):
    parsed = parse_labelled({"image": "a.png", "label": label}, BOATS, multi_label=True, prompt="Which boats?")
    assert parsed.target == Labels(names, multi=True)


def test_a_text_may_be_classified():
    assert parse_labelled({"prompt": "It floats.", "label": "tug"}, BOATS).turns[0].parts == ("It floats.",)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ("x", "the row is a str; expected an object with 'image' or 'video', and 'label'"),
        ({"image": "a.png"}, r"it has no 'label' \(its keys: image\); expected its class"),
        ({"label": "tug"}, r"it has no 'image', 'video' or 'prompt' \(its keys: label\); expected what is to be"),
        (
            {"image": "a.png", "label": "canoe"},
            "its 'label' holds 'canoe'; expected one of ferry, tug, yacht, 1; mend it, or add the class to labels",
        ),
        ({"image": "a.png", "label": "tugg"}, "its 'label' holds 'tugg'; .*; did you mean tug?"),
        ({"image": "a.png", "label": 4}, "its 'label' holds 4; expected one of ferry"),
        ({"image": "a.png", "label": -1}, "its 'label' holds -1; expected one of ferry"),
        ({"image": "a.png", "label": True}, "its 'label' holds True; expected one of"),
        (
            {"image": "a.png", "label": 1},
            "its 'label' 1 may mean the class named '1', or 'tug', number 1 from 0; write the class's name as text",
        ),
        (
            {"image": "a.png", "label": ["tug"]},
            r"its 'label' is \['tug'\]; expected one class, or multi_label: true in the",
        ),
        ({"prompt": 3, "label": "tug"}, "its 'prompt' is a int; expected a list of turns"),
        ({"prompt": "<image>", "label": "tug"}, "its text has 1 <image> tag, but it has no pictures"),
    ],
)
def test_broken_rows(row, match):
    with pytest.raises(DataError, match=f"^{match}"):
        parse_labelled(row, BOATS, prompt="Which boat?")


@pytest.mark.parametrize(
    ("label", "match"),
    [
        ("tug", "its 'label' is 'tug'; with multi_label: true, expected a list of classes"),
        (["tug", "canoe"], "its 'label' holds 'canoe'; expected one of"),
        (["ferry", 0], r"its 'label' \['ferry', 0\] names a class twice; name each once"),
    ],
)
def test_broken_lists_of_labels(label, match):
    with pytest.raises(DataError, match=f"^{match}"):
        parse_labelled({"image": "a.png", "label": label}, BOATS, multi_label=True)


def test_a_long_list_of_classes_is_shortened():
    with pytest.raises(DataError, match="expected one of 0, 1, .*, 19 and 980 more; mend it"):
        parse_labelled({"image": "a.png", "label": "x"}, tuple(map(str, range(1000))))


def from_data(tmp_path: Path, *labels: object, **fields: object) -> ClassificationDataset:
    (tmp_path / "boats.json").write_text(json.dumps([{"prompt": "Which?", "label": label} for label in labels]))
    return validate(ClassificationDataset, {"data_path": tmp_path / "boats.json", "labels": "from_data"} | fields)


def test_the_classes_may_be_those_of_the_data(tmp_path: Path):
    spec = from_data(tmp_path, "tug", "ferry", "tug", "yacht")
    assert spec.classes == Classes(("ferry", "tug", "yacht"))
    assert [spec.open("mine")[row].target for row in (0, 3)] == [Labels(("tug",)), Labels(("yacht",))]
    assert validate(ClassificationDataset, spec.to_config()) == spec
    several = from_data(tmp_path, ["tug"], [], ["yacht", "tug"], multi_label=True)
    assert several.classes == Classes(("tug", "yacht"), multi=True)
    (tmp_path / "eval.json").write_text(json.dumps([{"prompt": "Which?", "label": "canoe"}]))
    with pytest.raises(DataError, match="'label' holds 'canoe'; expected one of tug, yacht"):
        from_data(tmp_path, "tug", "yacht", eval_data_path=tmp_path / "eval.json").open_eval("mine")[0]


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (["tug", 1], "boats.json:1, row 1: its 'label' is the number 1, and labels: from_data takes names alone"),
        (["tug", "tug"], "boats.json: labels: from_data: two classes or more are needed; found 1"),
        (["tug", " "], "labels: from_data: a class has an empty name"),
    ],
)
def test_data_that_does_not_name_its_classes_is_refused(tmp_path: Path, labels: list[object], match: str):
    with pytest.raises(DataError, match=match):
        _ = from_data(tmp_path, *labels).classes
    with pytest.raises(DataError, match=f"^mine: .*{match}"):
        from_data(tmp_path, *labels).open("mine")


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (1, "labels: two classes or more are needed; found 1"),
        (0, "labels: two classes or more are needed; found 0"),
        (["a"], "labels: two classes or more are needed; found 1"),
        (["a", "b", "a"], "labels: a stands twice; name each class once"),
        (["a", " "], "labels: a class has an empty name; give it one"),
        ("a,b", "labels"),
    ],
)
def test_entries_without_classes_are_refused(labels, match):
    with pytest.raises(ConfigError, match=match):
        validate(ClassificationDataset, {"data_path": "x.json", "labels": labels})
