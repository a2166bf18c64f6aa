import json
import pickle
from pathlib import Path

import pytest

from tests.data.making import save_picture
from vlmft.data import PreferenceDataset
from vlmft.data.sources.parsed import MEDIUM, Reference
from vlmft.data.sources.preference import parse_preference
from vlmft.errors import DataError
from vlmft.types import Image, Message, Preference, Video

PAIR = {"chosen": "Two boats.", "rejected": "Three boats."}
ASKED = [{"from": "human", "value": "How many?"}]


def test_the_forms_that_qwen2_vl_finetune_documents(tmp_path: Path):
    save_picture(tmp_path / "quay.png")
    (tmp_path / "quay.mp4").write_bytes(b"not decoded here")
    rows = [
        {"id": "5c7", "image": "quay.png", "prompt": "<image>\nHow many boats?"} | PAIR,
        {"id": "5c8", "video": "quay.mp4", "prompt": "<video>\nHow many boats?"} | PAIR,
    ]
    (tmp_path / "dpo.json").write_text(json.dumps(rows))
    source = pickle.loads(
        pickle.dumps(PreferenceDataset(data_path=tmp_path / "dpo.json", system_prompt="S").open("mine"))
    )
    assert source[0].messages == (
        Message("system", ("S",)),
        Message("user", (Image(tmp_path / "quay.png"), "How many boats?")),
    )
    assert source[1].messages[1].parts == (Video(tmp_path / "quay.mp4"), "How many boats?")
    assert source[0].target == source[1].target == Preference("Two boats.", "Three boats.")
    assert source.content_key(0) != source.content_key(1)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "<image>How many?", "image": "a.png"} | PAIR,
        {"conversations": ASKED, "images": ["a.png"]} | PAIR,
        {
            "conversations": ASKED,
            "image": ["a.png"],
            "chosen": {"from": "gpt", "value": "Two boats."},
            "rejected": {"from": "gpt", "value": "Three boats."},
        },
        {
            "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]}],
            "images": ["a.png"],
            "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "Two boats."}]}],
            "rejected": [{"role": "assistant", "content": "Three boats."}],
        },
    ],
)
def test_every_spelling_is_the_same_sample(row):
    parsed = parse_preference(row)
    assert [(turn.role, turn.parts) for turn in parsed.turns] == [("user", (MEDIUM, "How many?"))]
    assert parsed.media == [Reference("image", "a.png")]
    assert parsed.target == Preference("Two boats.", "Three boats.")


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ([], "the row is a list; expected an object with 'prompt', 'chosen' and 'rejected'"),
        ({"prompt": "Q"}, r"it has no 'chosen' \(its keys: prompt\); expected an answer"),
        ({"prompt": "Q", "chosen": "A"}, "it has no 'rejected'"),
        (PAIR, r"it has no 'prompt' \(its keys: chosen, rejected\); expected the question"),
        ({"prompt": "Q", "chosen": "A", "rejected": " "}, "its 'rejected' is empty; write the text, or leave"),
        ({"prompt": "Q", "chosen": "A", "rejected": 3}, "its 'rejected' is a int; expected a list of turns"),
        (
            {"prompt": "Q", "chosen": "A", "rejected": "A\n"},
            "its 'chosen' and 'rejected' are the same answer; give two",
        ),
        ({"prompt": "Q", "chosen": "<image>", "rejected": "B"}, "its 'chosen' has the tag <image>; pictures may only"),
        ({"prompt": "Q", "chosen": "[ANNOTATE: A]", "rejected": "B"}, "its 'chosen' is still to be filled in"),
        (
            PAIR | {"prompt": "Q", "chosen": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
            "its 'chosen' has the turns user, assistant; expected the assistant's answer alone",
        ),
        (
            PAIR | {"prompt": "Q", "chosen": {"from": "human", "value": "A"}},
            "its 'chosen' has the turns user; expected",
        ),
        (
            PAIR | {"conversations": [*ASKED, {"from": "gpt", "value": "Two."}]},
            "the last turn is the assistant's; a prompt ends with the user's turn",
        ),
        (PAIR | {"prompt": "<image>"}, "its text has 1 <image> tag, but it has no pictures"),
        (PAIR | {"prompt": []}, "its 'prompt' is an empty list; expected a list of turns"),
    ],
)
def test_broken_rows(row, match):
    with pytest.raises(DataError, match=f"^{match}"):
        parse_preference(row)
