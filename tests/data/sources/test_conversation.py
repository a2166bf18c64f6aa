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
    parsed = parse_conversation(row | {"image": ["0.png", "1.png"]})
    assert [turn.parts for turn in parsed.turns] == [
        ("Be brief.",),
        (MEDIUM, MEDIUM, "\nSame?"),
        ("No.",),
        ("Sure?",),
        ("Yes.",),
    ]


def test_tags_in_later_turns_stay_there():
    row = turns(("human", "Hello"), ("gpt", "Hi."), ("human", "<image>\nWhat?"), ("gpt", "A cat."), image="a.png")
    parsed = parse_conversation(row)
    assert parsed.turns[0].parts == ("Hello",)
    assert parsed.turns[2].parts == (MEDIUM, "What?")
    assert parsed.media == [Reference("image", "a.png")]


@pytest.mark.parametrize("image", [None, []])
def test_text_only(image):
    for row in (qa(), qa(image=image), qa(video=None), qa(images=[]), qa(video=[])):
        parsed = parse_conversation(row)
        assert [turn.role for turn in parsed.turns] == ["user", "assistant"]
        assert parsed.media == []


def test_every_spelling_of_a_role_and_other_keys():
    row = turns(
        ("developer", "S"), ("user", "Q"), ("assistant", " A \n"), ("human", "Q"), ("gpt", "A"), weight=3, source="x"
    )
    parsed = parse_conversation(row)
    assert [turn.role for turn in parsed.turns] == ["system", "user", "assistant", "user", "assistant"]
    assert parsed.turns[2].parts == (" A \n",)


VIDEO = Reference("video", "v.mp4")


class TestVideos:
    @pytest.mark.parametrize(
        ("found", "expected"),
        [
            ("v.mp4", [("v.mp4", 2.0)]),
            ("frames", [("frames", 2.0)]),
            (["v.mp4", "w.mp4"], [("v.mp4", 2.0), ("w.mp4", 2.0)]),
            (["1.jpg", "2.JPG"], [(("1.jpg", "2.JPG"), 2.0)]),
            ([["1.jpg", "2.jpg"], ["3.jpg"]], [(("1.jpg", "2.jpg"), 2.0), (("3.jpg",), 2.0)]),
            ([["1.jpg"], "v.mp4", "folder"], [(("1.jpg",), 2.0), ("v.mp4", 2.0), ("folder", 2.0)]),
            (["waving.gif"], [("waving.gif", 2.0)]),
        ],
    )
    def test_files_folders_and_frames(self, found, expected):
        parsed = parse_conversation(qa(video=found), frames_fps=2.0)
        assert parsed.media == [Reference("video", value, fps) for value, fps in expected]
        assert parsed.turns[0].parts == (*[MEDIUM] * len(expected), "What is it?")

    def test_a_tag_stands_where_it_was_put(self):
        parsed = parse_conversation(qa("Watch <video>\nWhat happens?", video="v.mp4"))
        assert parsed.turns[0].parts == ("Watch ", MEDIUM, "What happens?")
        assert parsed.media == [VIDEO]

    def test_pictures_and_videos_keep_the_order_of_their_tags(self):
        row = qa(
            "<video>\nIs <image> in it, or <image>, or in <video>?", image=["a.png", "b.png"], video=["v.mp4", "w"]
        )
        parsed = parse_conversation(row)
        assert parsed.turns[0].parts == (MEDIUM, "Is ", MEDIUM, " in it, or ", MEDIUM, ", or in ", MEDIUM, "?")
        assert parsed.media == [
            VIDEO,
            Reference("image", "a.png"),
            Reference("image", "b.png"),
            Reference("video", "w"),
        ]

    def test_without_tags_pictures_come_before_videos(self):
        parsed = parse_conversation(qa(video="v.mp4", image="a.png"))
        assert parsed.media == [Reference("image", "a.png"), VIDEO]
        assert parsed.turns[0].parts == (MEDIUM, MEDIUM, "What is it?")

    def test_an_image_tag_stands_for_a_video_where_the_entry_says_so(self):
        for question in ("<image>\nWhat?", "<video>\nWhat?", "What?"):
            parsed = parse_conversation(qa(question, video="v.mp4"), is_video=True)
            assert (parsed.turns[0].parts, parsed.media) == ((MEDIUM, "What?"), [VIDEO])
        with pytest.raises(
            DataError, match="^its text has 1 <image> tag, but it has no pictures; write one tag for each"
        ):
            parse_conversation(qa("<image>\nWhat?", video="v.mp4"))

    @pytest.mark.parametrize(
        ("row", "match"),
        [
            (qa(image="a.png"), "it has the key 'image', but its entry says is_video: true; call it 'video'"),
            (qa("<image><image>", video="v.mp4"), "its text has 2 <image> tags, but it has 1 video; write one tag for"),
            (qa("<image><video>", video="v.mp4"), "its text has 2 <video> tags, but it has 1 video; write one tag for"),
            (qa("<image>"), "its text has 1 <image> tag, but it has no videos"),
        ],
    )
    def test_broken_rows_of_such_an_entry(self, row, match):
        with pytest.raises(DataError, match=f"^{match}"):
            parse_conversation(row, is_video=True)


def test_media_may_be_bytes_as_hugging_face_datasets_hold_them():
    row = qa("<image>Or <image>?", image=[{"bytes": b"PNG", "path": "a.png"}, {"bytes": None, "path": "b.png"}])
    assert parse_conversation(row).media == [Reference("image", b"PNG"), Reference("image", "b.png")]
    assert parse_conversation(qa(image=bytearray(b"PNG"))).media == [Reference("image", b"PNG")]
    assert parse_conversation(qa(video={"path": "v.mp4", "bytes": b"MP4"})).media == [Reference("video", b"MP4")]


def test_a_data_uri_holds_the_medium_itself():
    row = qa(image="data:image/png;base64,UE5H", video=["DATA:video/mp4;charset=x;BASE64,TVA0"])
    assert parse_conversation(row).media == [Reference("image", b"PNG"), Reference("video", b"MP4")]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ([1], "the row is a list; expected an object with 'conversations'"),
        ({"id": "x", "text": "y"}, r"it has no 'conversations' \(its keys: id, text\); expected a list of turns"),
        ({}, r"it has no 'conversations' \(its keys: none\)"),
        ({"conversations": []}, "its 'conversations' is an empty list; expected a list of turns"),
        ({"conversations": "hi"}, "its 'conversations' is a str"),
        ({"conversations": ["hi"]}, "turn 1 is a str; expected"),
        (
            turns(("robot", "hi")),
            "turn 1 is from 'robot'; expected one of human, user, gpt, assistant, system, developer",
        ),
        (turns((["human"], "hi")), r"turn 1 is from \['human'\]; expected one of"),
        ({"conversations": [{"text": "hi"}]}, "turn 1 is from None; expected one of"),
        (turns(("human", None)), "turn 1 has the value None; expected a string"),
        (turns(("human", {"text": "x" * 900})), r"turn 1 has the value \{'text': 'x+\.\.\.; expected a string"),
        (turns(("human", "Q"), ("gpt", " \n")), "turn 2 is an empty answer; give the answer, or leave the sample out"),
        (turns(("human", "Q")), "it has no assistant turn, so there is nothing to learn; add the answer"),
        (turns(("gpt", "A")), "it has no user turn; add the question"),
        (turns(("human", "Q"), ("gpt", "A"), ("human", "Q")), "the last turn is the user's; add its answer, or remove"),
        (turns(("human", "Q"), ("gpt", "A"), ("gpt", "B")), "turns 2 and 3 are both the assistant's; join them"),
        (turns(("human", "Q"), ("system", "S"), ("gpt", "A")), "turn 2 is a system turn; it may only stand first"),
        (turns(("system", "S"), ("system", "S"), ("human", "Q"), ("gpt", "A")), "turn 2 is a system turn"),
        (turns(("human", "Q"), ("tool", "42"), ("gpt", "A")), "turn 2 is from 'tool': calls of tools are not trained"),
        (qa("half \ud83d"), r"turn 1 holds half a character \(\\ud83d\) at position 5"),
        (qa("Q", "[ANNOTATE: the colour]"), r"turn 2 is still to be filled in: \[ANNOTATE: the colour\]; write the"),
        (qa(id=[1]), "its id is a list; expected a string or a number, or no id at all"),
        (qa(id=True), "its id is a bool"),
        (qa(image=3), "its 'image' holds 3; expected a path, or a list of paths"),
        (qa(image=["a.png", ""]), "its 'image' holds ''; expected a path"),
        (qa(image=b""), "its 'image' holds a picture of no bytes; give the file's content, or its path"),
        (qa(image={"bytes": None, "path": None}), "its 'image' holds {'bytes': None, 'path': None}; expected a path"),
        (qa(image="data:image/png,a"), "its 'image' holds 'data:image/png,a'; expected data:image/...;base64,..."),
        (
            qa(image="data:text/html;base64,PGI+"),
            "its 'image' holds a data: URI of the type 'text/html'; expected image/",
        ),
        (
            qa(image="data:image/png;base64,@@@@"),
            "its 'image' holds a data: URI that is not base64: .*; encode the file",
        ),
        (qa(image="data:image/png;base64,"), "its 'image' holds a data: URI of no bytes; encode the file anew"),
        (qa(images=["a.png"]), "it has the key 'images'; this format calls it 'image', for one picture and for a list"),
        (
            qa(videos="v.mp4"),
            "it has the key 'videos'; this format calls it 'video', for one video and for a list alike",
        ),
        (qa(video=[3.5]), "its 'video' holds 3.5; expected a path"),
        (qa(video=[[]]), "its 'video' holds an empty list of frames; expected at least one"),
        (
            qa(video=["v.mp4", "1.jpg"]),
            "its 'video' holds '1.jpg', a picture; write the frames of each video as a list",
        ),
        (qa(video="1.jpg"), "its 'video' holds '1.jpg', a picture"),
        (qa(video=[{"bytes": b"J", "path": "1.jpg"}]), "its 'video' holds the bytes of frames; save them as files"),
        (
            qa("<video>\nWhat?"),
            "its text has 1 <video> tag, but it has no videos; write one tag for each video, or no tag",
        ),
        (qa("<image>\nWhat?"), "its text has 1 <image> tag, but it has no pictures; write one tag for each picture"),
        (qa("<image><image>", image="a.png"), "its text has 2 <image> tags, but it has 1 picture; write one tag"),
        (qa("<image>", image=["a.png", "b.png"]), "its text has 1 <image> tag, but it has 2 pictures"),
        (qa("<image>", image="a.png", video="v.mp4"), "its text has no <video> tags, but it has 1 video"),
        (qa("<video>", image="a.png"), "its text has no <image> tags, but it has 1 picture"),
        (
            qa("Q", "<image>", image="a.png"),
            "turn 2 is the assistant's and has the tag <image>; pictures may only stand",
        ),
        (qa("Q", "<video> plays", video="v.mp4"), "turn 2 is the assistant's and has the tag <video>; videos may only"),
        (turns(("system", "<image>"), ("human", "Q"), ("gpt", "A"), image="a.png"), "turn 1 is the system's and has"),
    ],
)
def test_broken_rows(row, match):
    with pytest.raises(DataError, match=f"^{match}"):
        parse_conversation(row)
