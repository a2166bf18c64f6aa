import pytest

from tests.data.making import qa, turns
from vlmft.data.sources.conversation import parse_conversation
from vlmft.data.sources.parsed import MEDIUM, Reference
from vlmft.errors import DataError


def parts(question: str, pictures: int = 1):
    parsed = parse_conversation(qa(question, image=[f"{i}.png" for i in range(pictures)]))
    assert parsed.media == [Reference("image", f"{i}.png") for i in range(pictures)]
    return parsed.turns[0].parts


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("<image>\nWhat?", (MEDIUM, "What?")),
        ("<image>\r\nWhat?", (MEDIUM, "What?")),
        ("<image>What?", (MEDIUM, "What?")),
        ("<image> What?", (MEDIUM, " What?")),
        ("<image>\n\nWhat?", (MEDIUM, "\nWhat?")),
        ("What?\n<image>", ("What?", MEDIUM)),
        ("What?\n\n<image>", ("What?\n", MEDIUM)),
        ("What?<image>", ("What?", MEDIUM)),
        ("See <image> here", ("See ", MEDIUM, " here")),
        ("See\n<image>\nhere", ("See\n", MEDIUM, "here")),
        ("<image>", (MEDIUM,)),
        ("<image>\n", (MEDIUM,)),
        ("\n<image>", (MEDIUM,)),
    ],
)
def test_a_tag_stands_where_it_was_put_and_owns_one_newline(question, expected):
    assert parts(question) == expected


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("<image>\n<image>\nSame?", (MEDIUM, MEDIUM, "Same?")),
        ("<image><image>Same?", (MEDIUM, MEDIUM, "Same?")),
        ("Same?\n<image>\n<image>", ("Same?", MEDIUM, MEDIUM)),
        ("Same?\n<image><image>", ("Same?", MEDIUM, MEDIUM)),
        ("Is <image> like <image>?", ("Is ", MEDIUM, " like ", MEDIUM, "?")),
    ],
)
def test_several_tags(question, expected):
    assert parts(question, 2) == expected


def test_without_tags_all_pictures_come_before_the_first_users_text():
    row = turns(("system", "Be brief."), ("human", "\nSame?"), ("gpt", "No."), ("human", "Sure?"), ("gpt", "Yes."))
    parsed, _ = parse_conversation(row | {"image": ["0.png", "1.png"]})
    assert [turn.parts for turn in parsed] == [
        ("Be brief.",),
        (MEDIUM, MEDIUM, "\nSame?"),
        ("No.",),
        ("Sure?",),
        ("Yes.",),
    ]


def test_tags_in_later_turns_stay_there():
    row = turns(("human", "Hello"), ("gpt", "Hi."), ("human", "<image>\nWhat?"), ("gpt", "A cat."), image="a.png")
    parsed, references = parse_conversation(row)
    assert parsed[0].parts == ("Hello",)
    assert parsed[2].parts == (MEDIUM, "What?")
    assert references == ["a.png"]


@pytest.mark.parametrize("image", [None, []])
def test_text_only(image):
    for row in (qa(), qa(image=image), qa(video=None), qa(images=[])):
        parsed, references = parse_conversation(row)
        assert [turn.role for turn in parsed] == ["user", "assistant"]
        assert references == []


def test_both_spellings_of_every_role_and_other_keys():
    row = turns(
        ("system", "S"), ("user", "Q"), ("assistant", " A \n"), ("human", "Q"), ("gpt", "A"), weight=3, source="x"
    )
    parsed, _ = parse_conversation(row)
    assert [turn.role for turn in parsed] == ["system", "user", "assistant", "user", "assistant"]
    assert parsed[2].parts == (" A \n",)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ([1], "the row is a list; expected an object with 'conversations'"),
        ({"id": "x", "text": "y"}, r"it has no 'conversations' \(its keys: id, text\); expected a list of"),
        ({}, r"it has no 'conversations' \(its keys: none\)"),
        ({"conversations": []}, "its 'conversations' is an empty list; expected a list of turns"),
        ({"conversations": "hi"}, "its 'conversations' is a str"),
        ({"conversations": ["hi"]}, "turn 1 is a str; expected"),
        (turns(("robot", "hi")), "turn 1 is from 'robot'; expected one of human, user, gpt, assistant, system"),
        ({"conversations": [{"role": "user", "content": "hi"}]}, "turn 1 is from None; expected one of"),
        (turns(("human", None)), "turn 1 has the value None; expected a string"),
        (turns(("human", ["hi"])), r"turn 1 has the value \['hi'\]; expected a string"),
        (turns(("human", "Q"), ("gpt", " \n")), "turn 2 is an empty answer; give the answer, or leave the sample out"),
        (turns(("human", "Q")), "it has no assistant turn, so there is nothing to learn; add the answer"),
        (turns(("gpt", "A")), "it has no user turn; add the question"),
        (turns(("human", "Q"), ("gpt", "A"), ("human", "Q")), "the last turn is the user's; add its answer, or remove"),
        (turns(("human", "Q"), ("gpt", "A"), ("gpt", "B")), "turns 2 and 3 are both the assistant's; join them"),
        (turns(("human", "Q"), ("system", "S"), ("gpt", "A")), "turn 2 is a system turn; it may only stand first"),
        (turns(("system", "S"), ("system", "S"), ("human", "Q"), ("gpt", "A")), "turn 2 is a system turn"),
        (qa("half \ud83d"), r"turn 1 holds half a character \(\\ud83d\) at position 5"),
        (qa(id=[1]), "its id is a list; expected a string or a number, or no id at all"),
        (qa(id=True), "its id is a bool"),
        (qa(image=3), "its 'image' holds 3; expected a path, or a list of paths"),
        (qa(image=["a.png", ""]), "its 'image' holds ''; expected a path"),
        (qa(images=["a.png"]), "it has the key 'images'; this format calls it 'image'"),
        (qa(video="a.mp4"), "it has a video: videos are not read yet; leave the sample out"),
        (qa("<video>\nWhat?"), "turn 1 has a <video> tag: videos are not read yet"),
        (qa("<image>\nWhat?"), "its text has 1 <image> tag, but it has no pictures; write one tag for each picture"),
        (qa("<image><image>", image="a.png"), "its text has 2 <image> tags, but it has 1 picture; write one tag"),
        (qa("<image>", image=["a.png", "b.png"]), "its text has 1 <image> tag, but it has 2 pictures"),
        (
            qa("Q", "<image>", image="a.png"),
            "turn 2 is the assistant's and has an <image> tag; pictures may only stand",
        ),
        (turns(("system", "<image>"), ("human", "Q"), ("gpt", "A"), image="a.png"), "turn 1 is the system's and has"),
    ],
)
def test_broken_rows(row, match):
    with pytest.raises(DataError, match=f"^{match}"):
        parse_conversation(row)
