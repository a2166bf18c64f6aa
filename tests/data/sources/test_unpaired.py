import json
import pickle
from pathlib import Path

import pytest

from tests.data.making import save_picture
from vlmft.data import UnpairedDataset
from vlmft.data.sources.parsed import MEDIUM, Reference
from vlmft.data.sources.unpaired import parse_unpaired
from vlmft.errors import DataError
from vlmft.types import Image, Message, Rated, Video

ANSWER = {"completion": "Two boats.", "label": True}
ASKED = [{"role": "user", "content": "<image>How many?"}]


def test_pictures_and_videos_with_an_answer(tmp_path: Path):
    save_picture(tmp_path / "quay.png")
    (tmp_path / "quay.mp4").write_bytes(b"not decoded here")
    rows = [
        {"id": "5c7", "image": "quay.png", "prompt": "<image>\nHow many boats?"} | ANSWER,
        {"id": "5c8", "video": "quay.mp4", "prompt": "<video>\nHow many boats?", "completion": "Nine.", "label": False},
    ]
    (tmp_path / "kto.json").write_text(json.dumps(rows))
    source = pickle.loads(
        pickle.dumps(UnpairedDataset(data_path=tmp_path / "kto.json", system_prompt="S").open("mine"))
    )
    assert source[0].messages == (
        Message("system", ("S",)),
        Message("user", (Image(tmp_path / "quay.png"), "How many boats?")),
    )
    assert source[1].messages[1].parts == (Video(tmp_path / "quay.mp4"), "How many boats?")
    assert [source.target(row) for row in range(2)] == [Rated("Two boats.", True), Rated("Nine.", False)]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "<image>How many?", "image": "a.png"} | ANSWER,
        {"prompt": ASKED, "images": ["a.png"]} | ANSWER,
        {  # as TRL's datasets have it
            "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]}],
            "images": ["a.png"],
            "completion": [{"role": "assistant", "content": "Two boats."}],
            "label": True,
        },
        {  # as LLaMA-Factory's have it
            "messages": [*ASKED, {"role": "assistant", "content": "Two boats."}],
            "images": ["a.png"],
            "label": True,
        },
        {
            "conversations": [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "Two boats."}],
            "image": "a.png",
            "label": True,
        },
    ],
)
def test_every_spelling_is_the_same_sample(row):
    parsed = parse_unpaired(row)
    assert [(turn.role, turn.parts) for turn in parsed.turns] == [("user", (MEDIUM, "How many?"))]
    assert parsed.media == [Reference("image", "a.png")]
    assert parsed.target == Rated("Two boats.", True)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ([], "the row is a list; expected an object with 'prompt', 'completion' and 'label'"),
        ({"prompt": "Q", "label": True}, r"it has no 'completion' \(its keys: prompt, label\); expected an answer"),
        (ANSWER, r"it has no 'prompt' \(its keys: completion, label\); expected the question"),
        ({"label": True}, r"it has no 'conversations' \(its keys: label\); expected a list of turns"),
        ({"prompt": "Q", "completion": " ", "label": True}, "its 'completion' is empty; write the text, or leave"),
        (
            {"prompt": "Q", "completion": "A"},
            r"it has no 'label' \(its keys: prompt, completion\); expected true for a good answer, false for a bad one",
        ),
        ({"prompt": "Q", "completion": "A", "label": 1}, "its 'label' is 1; expected true for a good answer"),
        ({"prompt": "Q", "completion": "A", "label": "false"}, "its 'label' is 'false'; expected true for a good"),
        (
            {"conversations": ASKED, "label": True},
            "the last turn is the user's; expected the assistant's, with the answer",
        ),
        (
            ANSWER | {"prompt": [*ASKED, {"role": "assistant", "content": "Two."}], "image": "a.png"},
            "the last turn is the assistant's; a prompt ends with the user's turn",
        ),
    ],
)
def test_broken_rows(row, match):
    with pytest.raises(DataError, match=f"^{match}"):
        parse_unpaired(row)
