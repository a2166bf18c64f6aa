"""`annotator=none`: rows to be filled in."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.annotation.conftest import Typed
from tests.annotation.making import DASHCAM, save_picture
from vlmft.data import LLaVADataset
from vlmft.data.sources.jsonrows import read_json_rows

TEMPLATES = """\
objects: {question: "What objects do you see?", answer: "I can see {objects}."}
layout:
  question: Describe the layout.
  answer: "{layout}"
"""


@pytest.fixture
def pics(tmp_path: Path) -> Path:
    """Two pictures, one in a folder of its own, a video by its name, and things that are neither."""
    (tmp_path / "t.yaml").write_text(TEMPLATES)
    save_picture(tmp_path / "pics/b.png")
    save_picture(tmp_path / "pics/B.JPG")
    save_picture(tmp_path / "pics/more/a.png")
    (tmp_path / "pics/clip.mp4").write_bytes(b"not looked into")
    (tmp_path / "pics/notes.txt").write_text("")
    (tmp_path / "pics/.hidden.png").write_text("")
    return tmp_path / "pics"


def rows(path: Path) -> list[Any]:
    table = read_json_rows(path)
    return [table.value(row) for row in range(len(table))]


def test_conversations_take_turns_with_the_templates_in_sorted_order(typed: Typed, pics: Path) -> None:
    code, out, err = typed("media_dir=pics", "out=pics/dataset.json", "templates=t.yaml")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"found    3 pictures, 1 video; left alone: 1 (other kinds, linked folders) in {pics}",
        f"written  {pics}/dataset.json: 4 rows to fill in, each marked [ANNOTATE: ...]",
        f"paths    start from {pics}",
    ]
    assert rows(pics / "dataset.json") == [
        {
            "id": reference,
            kind: reference,
            "conversations": [
                {"from": "human", "value": f"<{kind}>\n{question}"},
                {"from": "gpt", "value": f"[ANNOTATE: {answer}]"},
            ],
        }
        for reference, kind, question, answer in [
            ("B.JPG", "image", "What objects do you see?", "I can see {objects}."),
            ("b.png", "image", "Describe the layout.", "{layout}"),
            ("clip.mp4", "video", "What objects do you see?", "I can see {objects}."),
            ("more/a.png", "image", "Describe the layout.", "{layout}"),
        ]
    ]


def test_what_is_filled_in_is_read_as_training_reads_it(typed: Typed, pics: Path) -> None:
    typed("media_dir=pics", "out=data.jsonl", "templates=t.yaml")
    text = Path("data.jsonl").read_text()
    assert [json.loads(line)["id"] for line in text.splitlines()][1] == "pics/b.png"  # from the file's own folder
    Path("data.jsonl").write_text(text.replace("[ANNOTATE: {layout}]", "Two rows."))
    sample = LLaVADataset(data_path=Path("data.jsonl")).open("mine")[1]
    assert (sample.id, sample.messages[-1].text) == ("mine/pics/b.png", "Two rows.")
    assert [image.path for image in sample.images] == [pics / "b.png"]


def test_a_file_elsewhere_names_media_from_their_folder(typed: Typed, pics: Path) -> None:
    code, out, _ = typed("media_dir=pics", "out=other/data.jsonl", "templates=t.yaml")
    assert code == 0 and out.endswith(f"paths    start from {pics}\n")
    assert [row["id"] for row in rows(Path("other/data.jsonl"))] == ["B.JPG", "b.png", "clip.mp4", "more/a.png"]


def test_captions_of_a_schema(typed: Typed, pics: Path) -> None:
    code, out, _ = typed("media_dir=pics", "out=metadata.jsonl", f"schema={DASHCAM}")
    assert code == 0 and "4 rows to fill in" in out
    assert rows(Path("metadata.jsonl"))[2] == {
        "video": "pics/clip.mp4",
        "caption": "[ANNOTATE: what happens, in one or two sentences]",
        "event_type": "[ANNOTATE: how the clip ends for the car that films: one of collision, near_miss, no_incident]",
        "rule_violations": [
            "[ANNOTATE: every rule that is broken, by any car: any of speeding, failure_to_yield, "
            "ignoring_traffic_signs]"
        ],
        "intended_driving_action": "[ANNOTATE: one of turn_left, turn_right, change_lanes]",
        "traffic_density": "[ANNOTATE: one of low, high]",
        "visibility": "[ANNOTATE: one of good, bad]",
    }


def test_nothing_is_overwritten(typed: Typed, pics: Path) -> None:
    Path("d.json").write_text("[]")
    code, _, err = typed("media_dir=pics", "out=d.json", "templates=t.yaml")
    assert code == 2
    assert err == (
        f"error: out={Path('d.json').absolute()}: exists, and nothing is overwritten; append=true adds the media that "
        "it does not name yet, or choose another name\n"
    )
    assert Path("d.json").read_text() == "[]"


@pytest.mark.parametrize(("name", "end"), [("d.json", "\n]\n"), ("d.jsonl", "\n"), ("d.jsonl", "")])
def test_append_adds_what_is_not_named_and_leaves_the_rest_as_it_is(
    typed: Typed, pics: Path, name: str, end: str
) -> None:
    first = '{"image":  ["./pics/b.png"], "mine": 1.50}'
    second = f'{{"video": "{pics}/clip.mp4"}}'
    before = f"[ {first},\n{second}" if name == "d.json" else f"{first}\n{second}"
    Path(name).write_text(before + end)
    code, out, err = typed("media_dir=pics", f"out={name}", "templates=t.yaml", "append=true")
    assert (code, err) == (0, "")
    assert "2 rows to fill in" in out and "left     2 rows that were there" in out
    assert Path(name).read_text().startswith(before)
    added = rows(Path(name))[2:]
    assert [row["id"] for row in added] == ["pics/B.JPG", "pics/more/a.png"]
    assert [row["conversations"][1]["value"] for row in added] == [  # the third row and the fourth
        "[ANNOTATE: I can see {objects}.]",
        "[ANNOTATE: {layout}]",
    ]
    after = Path(name).read_bytes()
    code, out, _ = typed("media_dir=pics", f"out={name}", "templates=t.yaml", "append=true")
    assert code == 0 and "0 rows to fill in" in out and Path(name).read_bytes() == after


def test_append_begins_a_file_that_is_not_there(typed: Typed, pics: Path) -> None:
    assert typed("media_dir=pics", "out=d.json", "templates=t.yaml", "append=true")[0] == 0
    assert len(rows(Path("d.json"))) == 4


def test_a_damaged_file_is_not_added_to(typed: Typed, pics: Path) -> None:
    Path("d.json").write_text('[{"image": "x"},]')
    code, _, err = typed("media_dir=pics", "out=d.json", "templates=t.yaml", "append=true")
    assert code == 2 and "d.json: is no valid JSON: Expecting value: line 1 column 17 (char 16); mend it" in err
    assert Path("d.json").read_text() == '[{"image": "x"},]'


def test_a_link_out_of_the_folder_is_refused(typed: Typed, pics: Path, tmp_path: Path) -> None:
    save_picture(tmp_path / "away.png")
    (pics / "link.png").symlink_to(tmp_path / "away.png")
    (pics / "linked").symlink_to(pics / "more")
    code, _, err = typed("media_dir=pics", "out=pics/d.json", "templates=t.yaml")
    assert code == 2
    assert err.startswith(f"error: link.png is or passes a symlink that leads out of media_dir {pics}; ")
    (pics / "link.png").unlink()
    code, out, _ = typed("media_dir=pics", "out=pics/d.json", "templates=t.yaml")
    assert code == 0 and "3 pictures, 1 video; left alone: 2 (" in out


def test_a_name_that_no_json_can_hold(typed: Typed, pics: Path) -> None:
    (pics / "b\udcff.png").write_bytes(b"")
    code, _, err = typed("media_dir=pics", "out=d.json", "templates=t.yaml")
    assert code == 2 and "b\\xff.png': its name is no UTF-8, so no JSON can hold it; rename it" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["out=d.json"],
            "templates, schema: give one of the two: templates=templates.yaml writes conversations, schema=schema.json "
            "captions (annotator=openai asks a model for them)",
        ),
        (["out=d.json", "templates=t.yaml", f"schema={DASHCAM}"], "templates, schema: give one of the two: "),
        (["out=d.json", f"schema={DASHCAM}"], "out=d.json: captions should go to a .jsonl file"),
        (["out=d.yaml", "templates=t.yaml"], "out=d.yaml: expected a name that ends in .json or .jsonl"),
        (["out=d.json", "templates=t.yaml", "media_dir=none"], "media_dir=none: is no folder; give the one that"),
        (["out=d.json", "templates=t.yaml", "media_dir=empty"], "holds no picture and no video, by the endings of"),
        (["out=d.json", "templates=none.yaml"], "none.yaml: cannot be read: No such file or directory"),
        (
            ["out=d.json", "templates=bad1.yaml"],
            "bad1.yaml: a: should be a mapping (question: ..., answer: ...); found",
        ),
        (["out=d.json", "templates=bad2.yaml"], "bad2.yaml: a: anwser: unknown key; did you mean answer?"),
        (["out=d.json", "templates=bad3.yaml"], "bad3.yaml: a: holds <image>, which is put before the question by"),
        (["out=d.json", "templates=bad4.yaml"], "bad4.yaml: holds no template; expected name: {question: "),
        (["out=d.jsonl", "schema=none.json"], "schema: none.json cannot be read: No such file or directory; expected "),
        (["out=d.json", "templates=t.yaml", "apend=true"], "apend: unknown key; did you mean append?"),
        (
            ["out=d.json", "templates=t.yaml", "annotator=opena"],
            "annotator: there is no option opena; did you mean openai",
        ),
    ],
)
def test_bad_choices(typed: Typed, pics: Path, words: list[str], said: str) -> None:
    Path("empty").mkdir()
    Path("bad1.yaml").write_text("a: What?")
    Path("bad2.yaml").write_text("a: {question: What, anwser: That.}")
    Path("bad3.yaml").write_text("a: {question: '<image> What?', answer: That.}")
    Path("bad4.yaml").write_text("")
    code, out, err = typed("media_dir=pics", *words)
    assert (code, out if "found" not in out else "") == (2, "")
    assert said in err, err
    assert not list(Path.cwd().glob("d.*"))
