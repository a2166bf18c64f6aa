"""Tokens as people read them: the pieces join to what the tokenizer says, and nothing is hidden."""

import pytest

from tests.support import tiny_processor
from vlmft.previewing.tokens import Piece, printable, read_tokens

TOKENIZER = tiny_processor().tokenizer
PICTURE = int(tiny_processor().image_token_id)
FEATURES = frozenset((PICTURE,))


def read(text: str, supervised: list[bool] | None = None) -> list[Piece]:
    ids = TOKENIZER(text)["input_ids"]
    return read_tokens(TOKENIZER, ids, supervised or [False] * len(ids), [], FEATURES)


@pytest.mark.parametrize(
    "text",
    [
        "What colour is the shape?",
        "  two  spaces\n\n\ttab ",
        "你好 🙂👍🏽 é\u0301",
        "<think>a</think> <b>&amp;</b>",
        "\ufffd x \ufffd",
    ],
)
def test_pieces_join_to_the_text_and_cover_each_token_once(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    pieces = read(text)
    assert "".join(piece.text for piece in pieces) == text
    assert [token for piece in pieces for token in piece.ids] == ids
    assert [piece.place for piece in pieces] == [sum(len(p.ids) for p in pieces[:i]) for i in range(len(pieces))]


def test_tokens_that_share_a_character_are_one_piece() -> None:
    """The tiny vocabulary knows these as bytes alone."""
    assert [(piece.text, len(piece.ids)) for piece in read("你🙂a")] == [("你", 3), ("🙂", 4), ("a", 1)]


def test_bytes_that_are_no_character_are_shown_as_such() -> None:
    ids = TOKENIZER("你a<|im_end|>你")["input_ids"]
    broken = ids[:2] + ids[3:6]  # two bytes of three, "a", <|im_end|>, a byte of three
    pieces = read_tokens(TOKENIZER, broken, [False] * len(broken), [], FEATURES)
    assert [token for piece in pieces for token in piece.ids] == broken
    assert [(piece.kind, piece.text) for piece in pieces] == [
        ("text", "\ufffda"),
        ("control", "<|im_end|>"),
        ("text", "\ufffd"),
    ]


def test_control_tokens_are_told_from_text() -> None:
    kinds = [(piece.kind, piece.text) for piece in read("<|im_start|>user\n<|im_end|>")]
    assert kinds[0] == ("control", "<|im_start|>") and kinds[-1] == ("control", "<|im_end|>")
    assert {kind for kind, _ in kinds[1:-1]} == {"text"}


def test_vision_tokens_are_one_piece_a_run() -> None:
    a, b = TOKENIZER("a")["input_ids"], TOKENIZER("b")["input_ids"]
    ids = [*a, *[PICTURE] * 5, *b, *[PICTURE] * 2]
    pieces = read_tokens(
        TOKENIZER, ids, [False] * len(ids), [("picture 1", 3), ("picture 2", 2), ("video 1", 2)], FEATURES
    )
    assert [(piece.kind, piece.text, piece.place) for piece in pieces] == [
        ("text", "a", 0),
        ("vision", "picture 1: 3 tokens", 1),
        ("vision", "picture 2: 2 tokens", 4),
        ("text", "b", 6),
        ("vision", "video 1: 2 tokens", 7),
    ]


def test_the_mask_is_each_tokens_own() -> None:
    ids = TOKENIZER("user: 你")["input_ids"]
    mask = [i % 2 == 0 for i in range(len(ids))]  # also within the three bytes of a character
    pieces = read_tokens(TOKENIZER, ids, mask, [], FEATURES)
    assert [piece.supervised for piece in pieces for _ in piece.ids] == mask


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain é 你 🙂", "plain é 你 🙂"),
        ("line\n\ttab", "line\n\ttab"),
        ("a\u2028b\u200bc\u202ed\x00e\rf\x7f", "a<U+2028>b<U+200B>c<U+202E>d<U+0000>e<U+000D>f<U+007F>"),
        ("half \ud800", "half <U+D800>"),
        ("👩\u200d🚀 می\u200cخواهم", "👩\u200d🚀 می\u200cخواهم"),
    ],
)
def test_what_would_not_be_seen_is_written_as_its_number(text: str, seen: str) -> None:
    assert printable(text) == seen
