import json
import pickle
from pathlib import Path

import pytest

from tests.data.making import qa, save_picture, turns
from vlmft.data import PromptDataset
from vlmft.data.sources.parsed import MEDIUM, Reference
from vlmft.data.sources.prompts import parse_prompt
from vlmft.errors import DataError
from vlmft.types import Image, Message, Solution

THOUGHT = "<think>The mast leans to the left.</think>\n\n<answer>B</answer>"


def test_the_form_that_qwen2_vl_finetune_documents(tmp_path: Path):
    save_picture(tmp_path / "mast.png")
    (tmp_path / "grpo.json").write_text(json.dumps([qa("Which way does it lean?", THOUGHT, id="g1", image="mast.png")]))
    source = pickle.loads(pickle.dumps(PromptDataset(data_path=tmp_path / "grpo.json").open("mine")))
    assert source[0].messages == (Message("user", (Image(tmp_path / "mast.png"), "Which way does it lean?")),)
    assert source[0].target == Solution(THOUGHT)
    assert source[0].id == "mine/g1"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "<image>\nHow many?", "solution": "42", "image": "a.png"},
        {"prompt": "How many?", "solution": 42, "images": ["a.png"]},
        {"prompt": [{"role": "user", "content": "<image>How many?"}], "solution": "42", "image": "a.png"},
        {"conversations": [{"from": "human", "value": "How many?"}], "solution": "42", "image": "a.png"},
        qa("How many?", "42", image="a.png"),
        qa("<image>\nHow many?", "42", image="a.png"),
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "How many?"}],
                },
                {"role": "assistant", "content": [{"type": "text", "text": "42"}]},
            ]
        },
    ],
)
def test_every_spelling_is_the_same_sample(row):
    parsed = parse_prompt(row)
    assert [(turn.role, turn.parts) for turn in parsed.turns] == [("user", (MEDIUM, "How many?"))]
    assert parsed.media == [Reference("image", "a.png")]
    assert parsed.target == Solution("42")


def test_earlier_turns_belong_to_the_prompt():
    row = turns(("system", "S"), ("human", "Q"), ("gpt", "A"), ("human", "R"), ("gpt", "B"))
    parsed = parse_prompt(row)
    assert [turn.role for turn in parsed.turns] == ["system", "user", "assistant", "user"]
    assert parsed.target == Solution("B")
    assert parse_prompt({"prompt": "Q", "solution": "A", "system": "S"}).turns[0].parts == ("S",)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        (3, "the row is a int; expected an object with 'prompt' and 'solution', or 'conversations'"),
        ({}, r"it has no 'conversations' \(its keys: none\); expected a list of turns"),
        (
            {"prompt": "Q"},
            r"it has no 'solution' \(its keys: prompt\); expected the text that answers are checked against",
        ),
        ({"solution": "A"}, r"it has no 'prompt' \(its keys: solution\); expected the question, or a list of turns"),
        (
            {"prompt": "Q", "messages": [], "solution": "A"},
            "it has both 'prompt' and 'messages'; give the question once",
        ),
        ({"prompt": "Q", "solution": " "}, "its 'solution' is empty; write the text, or leave the sample out"),
        ({"prompt": "Q", "solution": 4.5}, "its 'solution' is 4.5; expected a text"),
        ({"prompt": "Q", "solution": True}, "its 'solution' is True; expected a text"),
        (
            {"prompt": "Q", "solution": "<image>"},
            "its 'solution' has the tag <image>; pictures may only stand in the prompt",
        ),
        ({"prompt": "Q", "solution": "[ANNOTATE: A]"}, "its 'solution' is still to be filled in"),
        ({"prompt": 3, "solution": "A"}, "its 'prompt' is a int; expected a list of turns"),
        ({"prompt": "\ud800", "solution": "A"}, "its 'prompt' holds half a character"),
        (turns(("human", "Q")), "the last turn is the user's; expected the assistant's, with the solution"),
        (
            turns(("human", "Q"), ("gpt", "A"), ("gpt", "B")),
            "the last turn is the assistant's; a prompt ends with the user",
        ),
        (turns(("gpt", "A")), "it has no user turn; add the question"),
        (qa("Q", " "), "turn 2 is an empty answer"),
        (qa("Q", "<video>"), "turn 2 holds a medium or its tag; pictures and videos may only stand in the prompt"),
        (qa("<image><image>", "A", image="a.png"), "its text has 2 <image> tags, but it has 1 picture"),
        ({"prompt": "<video>", "solution": "A"}, "its text has 1 <video> tag, but it has no videos"),
    ],
)
def test_broken_rows(row, match):
    with pytest.raises(DataError, match=f"^{match}"):
        parse_prompt(row)
