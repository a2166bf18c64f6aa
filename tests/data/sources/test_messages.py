import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.data.making import save_picture, turns
from vlmft.config.spec import validate
from vlmft.data import DatasetSpec, MessagesDataset
from vlmft.data.sources.messages import parse_messages
from vlmft.data.sources.parsed import MEDIUM, Reference
from vlmft.errors import DataError
from vlmft.types import Image, Message, Video

A = Reference("image", "a.png")
B = Reference("image", "b.png")
V = Reference("video", "v.mp4")


def said(*contents: Any, **keys: Any) -> dict[str, Any]:
    """A row of user and assistant in turn."""
    roles = ("user", "assistant")
    return keys | {"messages": [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]}


def asked(*parts: Any, **keys: Any) -> dict[str, Any]:
    """A row whose one question has these parts."""
    return said([*parts], "A kite.", **keys)


def text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def url(address: str, **keys: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": address} | keys}


def test_plain_texts_and_every_role():
    spoken = [("system", "Brief."), ("user", "Q"), ("assistant", "A"), ("human", "R"), ("gpt", "B")]
    parsed = parse_messages({"messages": [{"role": role, "content": content} for role, content in spoken]})
    assert [(turn.role, turn.parts) for turn in parsed.turns] == [
        ("system", ("Brief.",)),
        ("user", ("Q",)),
        ("assistant", ("A",)),
        ("user", ("R",)),
        ("assistant", ("B",)),
    ]
    row = {"messages": [{"role": "developer", "content": "Brief."}, *said("Q", "A")["messages"]]}
    assert parse_messages(row).turns[0].role == "system"


@pytest.mark.parametrize(
    "row",
    [
        asked({"type": "image", "image": "a.png"}, text("Which?")),
        asked(url("a.png", detail="low"), text("Which?")),
        asked({"type": "image_url", "image_url": "a.png"}, text("Which?")),
        asked({"type": "image", "image": {"path": "a.png", "bytes": None}}, text("Which?")),
        asked(
            {"type": "image", "text": None, "image": None},
            {"type": "text", "text": "Which?", "image": None},
            images="a.png",
        ),
        asked({"type": "image"}, text("Which?"), images=["a.png"]),
        asked(text("<image>\nWhich?"), image="a.png"),
        asked(text("Wh"), text("ich?"), images=["a.png"]),
        said("<image>\nWhich?", "A kite.", images=["a.png"]),
        said("Which?", [text("A "), text("kite.")], image=["a.png"]),
        turns(("human", "<image>Which?"), ("gpt", "A kite."), images=["a.png"]),
    ],
)
def test_every_spelling_of_one_picture_is_the_same_sample(row):
    parsed = parse_messages(row)
    assert [turn.parts for turn in parsed.turns] == [(MEDIUM, "Which?"), ("A kite.",)]
    assert parsed.media == [A]


@pytest.mark.parametrize(
    ("part", "reference"),
    [
        ({"type": "video", "video": "v.mp4"}, Reference("video", "v.mp4", 2.0)),
        ({"type": "video_url", "video_url": {"url": "v.mp4"}}, Reference("video", "v.mp4", 2.0)),
        ({"type": "video", "video": ["1.jpg", "2.jpg"]}, Reference("video", ("1.jpg", "2.jpg"), 2.0)),
        ({"type": "video", "video": "data:video/mp4;base64,TVA0"}, Reference("video", b"MP4", 2.0)),
        (url("data:image/jpeg;base64,SlBH"), Reference("image", b"JPG")),
        (url("https://a.org/b.png"), Reference("image", "https://a.org/b.png")),
    ],
)
def test_media_of_parts(part, reference):
    parsed = parse_messages(asked(text("Now "), part, text(" what?")), frames_fps=2.0)
    assert parsed.turns[0].parts == ("Now ", MEDIUM, " what?")
    assert parsed.media == [reference]


def test_media_of_parts_and_of_lists_each_come_where_they_belong():
    row = said(
        [{"type": "image", "image": "b.png"}, text("Is it in <video>, or in <image>?")],
        "No.",
        [text("And here? "), {"type": "video"}],
        "Yes.",
        images=["a.png"],
        videos=["v.mp4", "w.mp4"],
    )
    parsed = parse_messages(row)
    assert parsed.media == [B, V, A, Reference("video", "w.mp4")]
    assert parsed.turns[2].parts == ("And here? ", MEDIUM)


def test_lists_as_llama_factory_writes_them():
    row = turns(("human", "<image><video>Both?"), ("gpt", "Yes."), images=["a.png"], videos=[["1.jpg", "2.jpg"]])
    parsed = parse_messages(row | {"system": "Be brief.", "tools": "", "audios": []})
    assert parsed.media == [A, Reference("video", ("1.jpg", "2.jpg"))]
    assert [turn.role for turn in parsed.turns] == ["system", "user", "assistant"]
    assert parsed.turns[0].parts == ("Be brief.",)
    assert parse_messages(said("Q", "A", videos=["v.mp4", "w.mp4"])).media == [V, Reference("video", "w.mp4")]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ("hi", "the row is a str; expected an object with 'messages'"),
        ({"text": "x"}, r"it has no 'messages' \(its keys: text\); expected a list of turns"),
        (said(), "its 'messages' is an empty list; expected a list of turns"),
        ({"messages": {"role": "user"}}, "its 'messages' is a dict; expected a list of turns"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "turn 1 has the role 'robot'; expected one of human, user"),
        ({"messages": [{"content": "x"}]}, "turn 1 has the role None; expected one of"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "turn 1 is from 'tool': calls of tools are not trained; leave",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]},
            "turn 1 has 'tool_calls': calls of",
        ),
        (
            {"messages": [{"role": "assistant", "content": None, "function_call": {"a": 1}}]},
            "turn 1 has 'function_call'",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "reasoning_content": "y"}]},
            "turn 1 has 'reasoning_content'",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "weight": 0}]},
            "turn 1 has the weight 0; every answer is",
        ),
        (said("Q", "A", tools="[{}]"), "it has 'tools': calls of tools are not trained; leave the sample out"),
        (said("Q", "A", audios=["a.wav"]), "it has 'audios': sound is not read; leave the sample out"),
        (said("Q", "A", system=7), "its 'system' is 7; expected a text"),
        (
            {"messages": [{"role": "system", "content": "S"}, *said("Q", "A")["messages"]], "system": "T"},
            "it has a system turn and the key 'system'; leave one of them out",
        ),
        (said("Q", None), "turn 2 has the value None; expected a string, or a list of parts"),
        (said("Q", []), "turn 2 is an empty answer; give the answer"),
        (said("Q", [text(" ")]), "turn 2 is an empty answer; give the answer"),
        (said("Q", [text("A"), text("[ANNOTATE: x]")]), r"turn 2 is still to be filled in: \[ANNOTATE: x\]"),
        (said("Q"), "it has no assistant turn, so there is nothing to learn"),
        (said("Q", "A", "R"), "the last turn is the user's; add its answer, or remove the turn"),
        ({"messages": [*said("Q", "A")["messages"], {"role": "gpt", "content": "B"}]}, "turns 2 and 3 are both the"),
        (
            asked("hi"),
            "turn 1, part 1 is 'hi'; expected {'type': 'text', 'text': ...}, or a part of the type image, im",
        ),
        (asked({"type": "audio", "audio": "a.wav"}), "turn 1, part 1 is {'type': 'audio', .*; expected"),
        (asked({"type": ["image"]}), r"turn 1, part 1 is {'type': \['image'\]}; expected"),
        (asked(text("Q"), {"type": "text", "text": 3}), "turn 1, part 2 is {'type': 'text', 'text': 3}; expected"),
        (
            asked({"type": "image", "image": "a.png", "max_pixels": 9}),
            "turn 1, part 1 has the key 'max_pixels', which is",
        ),
        (asked({"type": "image", "image_url": "a.png"}), "turn 1, part 1 has the key 'image_url', which is not read"),
        (asked({"type": "image", "image": 3}), "turn 1, part 1 holds 3; expected a path"),
        (asked(url("a.png", fps="2")), "turn 1, part 1 has the key 'fps', which is not read; leave it out"),
        (asked(url("")), "turn 1, part 1 holds ''; expected a path"),
        (asked({"type": "image_url", "image_url": {}}), "turn 1, part 1 holds None; expected a path"),
        (asked({"type": "video", "video": "1.jpg"}), "turn 1, part 1 holds '1.jpg', a picture; write the frames"),
        (asked(text("half \udc00")), r"turn 1, part 1 holds half a character \(\\udc00\) at position 5"),
        (asked({"type": "image"}), "its text has 1 <image> tag, but it has no pictures; write one tag for each"),
        (asked({"type": "image"}, images=["a.png", "b.png"]), "its text has 1 <image> tag, but it has 2 pictures"),
        (
            asked({"type": "image", "image": "a.png"}, images=["a.png"], videos=["v.mp4"]),
            "it has media in its messages, and 1 picture and 1 video beside them without a place; write a tag",
        ),
        (
            said("Q", "A", image="a.png", images=["a.png"]),
            "it has both 'image' and 'images'; put all its pictures under",
        ),
        (said("Q", "A", videos=["1.jpg", "2.jpg"]), "its 'videos' holds '1.jpg', a picture; write the frames of each"),
        (said("Q", [text("A"), {"type": "image", "image": "a.png"}]), "turn 2 is the assistant's and holds a picture;"),
        (said("Q", "See <video>", videos=["v.mp4"]), "turn 2 is the assistant's and has the tag <video>; videos may"),
        (said("Q", "A", id={}), "its id is a dict; expected a string or a number"),
    ],
)
def test_broken_rows(row, match):
    with pytest.raises(DataError, match=f"^{match}"):
        parse_messages(row)


def test_an_entry_reads_json_lines_with_files_beside_them(tmp_path: Path):
    save_picture(tmp_path / "pictures" / "a.png")
    (tmp_path / "pictures" / "v.mp4").write_bytes(b"not decoded here")
    rows = [
        asked(url("a.png"), text("What flies?"), id="m1"),
        said("<video>\nWhat moves?", [text("A kite.")], videos=["v.mp4"], id="m2"),
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    entry = {
        "_target_": "vlmft.data.MessagesDataset",
        "data_path": "train.jsonl",
        "media_dir": "pictures",
        "root": str(tmp_path),
        "system_prompt": "Be brief.",
    }
    spec = validate(DatasetSpec, entry)
    assert isinstance(spec, MessagesDataset)
    source = pickle.loads(pickle.dumps(spec.open("mine")))
    assert [source[row].id for row in (0, 1)] == ["mine/m1", "mine/m2"]
    assert source[0].messages == (
        Message("system", ("Be brief.",)),
        Message("user", (Image(tmp_path / "pictures" / "a.png"), "What flies?")),
        Message("assistant", ("A kite.",)),
    )
    assert source[1].messages[1].parts == (Video(tmp_path / "pictures" / "v.mp4"), "What moves?")
