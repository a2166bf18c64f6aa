import json

import pytest

from vlmft.data.sources.tar_samples import ending_of, is_known, kind_of, sample_row
from vlmft.errors import DataError

A, B, C = b"bytes of a", b"bytes of b", b"bytes of c"


def row(members, prompt=None):
    content = {key: json.dumps(value).encode() if key.endswith("json") else value for key, value in members.items()}
    return sample_row("000", content, prompt)


def test_kinds():
    assert [kind_of(ending) for ending in ("jpg", "png", "mp4", "webm", "json", "npy")] == [
        "image", "image", "video", "video", None, None,
    ]  # fmt: skip
    assert [is_known(ending) for ending in ("jpg", "mp4", "json", "txt", "cls", "npy", "gz")] == [True] * 5 + [
        False
    ] * 2
    assert (ending_of("0.JPG"), ending_of("jpg")) == ("jpg", "jpg")


def test_media_that_the_row_does_not_name():
    assert row({"json": {"t": 1}, "jpg": A}) == {"t": 1, "image": A}
    assert row({"json": {}, "10.jpg": C, "9.png": B, "1.jpg": A}) == {"image": [A, B, C]}
    assert row({"json": {}, "mp4": A, "jpg": B}) == {"video": A, "image": B}
    assert row({"json": {"id": 7}}) == {"id": 7}
    assert row({"jpg": A}) == {"image": A}


def test_media_that_the_row_names_by_their_files():
    assert row({"json": {"image": ["000.b.jpg", "000.a.jpg"]}, "a.jpg": A, "b.jpg": B}) == {"image": [B, A]}
    assert row({"json": {"image": "deep/000.jpg", "text": "000.jpg"}, "jpg": A}) == {"image": A, "text": "000.jpg"}
    parts = [{"type": "image", "image": "000.1.jpg"}, {"type": "image_url", "image_url": {"url": "./000.0.jpg"}}]
    filled = row({"json": {"messages": [{"content": parts}]}, "0.jpg": A, "1.jpg": B})
    assert filled["messages"][0]["content"] == [
        {"type": "image", "image": B},
        {"type": "image_url", "image_url": {"url": A}},
    ]
    assert row({"json": {"image": ["000.jpg", "000.jpg"]}, "jpg": A}) == {"image": [A, A]}


def test_media_that_the_row_names_otherwise_come_in_their_order():
    assert row({"json": {"image": "coco/7.jpg"}, "jpg": A}) == {"image": A}
    assert row({"json": {"image": ["coco/7.jpg"]}, "jpg": A}) == {"image": [A]}
    assert row({"json": {"images": ["y.jpg", "x.jpg"]}, "0.jpg": A, "1.jpg": B}) == {"images": [A, B]}
    assert row({"json": {"image": "elsewhere.jpg"}}) == {"image": "elsewhere.jpg"}


def test_media_that_do_not_fit_the_row():
    with pytest.raises(DataError, match="its .json names 2 pictures under 'image', and the tar holds 1 picture for it"):
        row({"json": {"image": ["x.jpg", "y.jpg"]}, "jpg": A})
    with pytest.raises(
        DataError, match=r"the tar holds 000\.1\.jpg, which its \.json does not name beside 000\.0\.jpg"
    ):
        row({"json": {"image": "000.0.jpg"}, "0.jpg": A, "1.jpg": B})


def test_texts_and_classes():
    assert row({"txt": b"A kite.\n", "jpg": A}) == {"text": "A kite.", "image": A}
    assert row({"json": {"text": "own"}, "txt": b"other"}) == {"text": "own"}
    assert row({"cls": b"3\n"}) == {"label": 3}
    assert row({"cls": b"kite"}) == {"label": "kite"}
    assert row({"json": {"label": "own"}, "cls": b"3"}) == {"label": "own"}


def test_a_text_that_answers_the_entrys_prompt():
    turns = [{"from": "human", "value": "Describe it."}, {"from": "gpt", "value": "A kite."}]
    assert row({"txt": b"A kite.", "jpg": A}, "Describe it.") == {"conversations": turns, "image": A}
    assert row({"json": {"width": 8}, "txt": b"A kite."}, "Describe it.") == {"width": 8, "conversations": turns}
    assert row({"json": {"conversations": []}, "txt": b"A kite."}, "Describe it.") == {"conversations": []}
    with pytest.raises(DataError, match=r"it has no \.txt to answer the entry's prompt; add it, or set no prompt"):
        row({"jpg": A}, "Describe it.")


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ({"json": b"{"}, r"its \.json is not valid JSON: .*; mend it"),
        ({"json": b"[" * 100_000}, r"its \.json is not valid JSON: .*recursion"),
        ({"json": b"[1]"}, r"its \.json holds a list; expected an object"),
        ({"txt": b"caf\xe9"}, r"its \.txt is not UTF-8 \(byte 3\); save it as UTF-8"),
        ({"json": b"{}", "meta.json": b"{}"}, r"it has two members that end in \.json; leave one of them out"),
    ],
)
def test_texts_that_cannot_be_read(members, match):
    with pytest.raises(DataError, match=match):
        sample_row("000", members, None)


def test_numbers_are_exact_and_a_mark_is_no_text():
    assert sample_row("0", {"json": b'\xef\xbb\xbf{"n": 123456789012345678901}'}, None) == {"n": 123456789012345678901}
