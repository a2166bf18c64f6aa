import itertools
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from vlmft.config.media import Augmentation, CoordinateForm, CoordinateStyle
from vlmft.data.media.augment import View, augmented, draw_view
from vlmft.data.media.coordinates import Box, find_marks, marked_boxes, rewrite
from vlmft.errors import DataError
from vlmft.types import Image, Labels, Message, Preference, Rated, Sample, Solution, Target, Video

FORMS: tuple[CoordinateForm, ...] = ("pixels", "unit", "thousand")
STYLES: tuple[CoordinateStyle, ...] = ("seen_pixels", "thousand", "unit")
WHOLE = View.whole(100, 200)
"""Of a picture 200 wide and 100 high."""


def sample(answer: str, media: int = 1, question: str = "Where?", target: Target | None = None) -> Sample:
    pictures = [Image(Path(f"/pictures/{number}.png")) for number in range(media)]
    messages = (Message("user", (*pictures, question)), Message("assistant", (answer,)))
    return Sample("mine/7", messages[: 1 if target else 2], target=target)


def rewritten(
    text: str,
    form: CoordinateForm = "pixels",
    style: CoordinateStyle = "thousand",
    view: View = WHOLE,
    seen: tuple[int, int] = (50, 100),
    media: int = 1,
) -> str:
    return rewrite(sample(text, media), [view] * media, [seen] * media, form, style).messages[1].text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"bbox_2d": [20, 10, 100, 50], "label": "7 cats"}', '{"bbox_2d": [100, 100, 500, 500], "label": "7 cats"}'),
        ('{"bbox":[20,10,100.0,50]}', '{"bbox":[100,100,500,500]}'),
        (
            '[{"point_2d": [20, 10]}, {"point" : [ 200 ,\n100 ]}]',
            '[{"point_2d": [100, 100]}, {"point" : [ 1000 ,\n1000 ]}]',
        ),
        ("{'bbox_2d': [20, 10, 100, 50]}", "{'bbox_2d': [100, 100, 500, 500]}"),
        (r'"{\"bbox\": [20, 10, 100, 50]}"', r'"{\"bbox\": [100, 100, 500, 500]}"'),
        ('"bbox": [[20, 10, 100, 50], [0, 0, 2e1, .0]]', '"bbox": [[100, 100, 500, 500], [0, 0, 100, 0]]'),
        ("A <box>20,10,100,50</box> and 20, 10.", "A <box>100,100,500,500</box> and 20, 10."),
        (
            "<point>20, 10</point><point image=1>200,100</point>",
            "<point>100, 100</point><point image=1>1000,1000</point>",
        ),
        ("<ref>cat</ref><box>[[20, 10, 100, 50]]</box>", "<ref>cat</ref><box>[[100, 100, 500, 500]]</box>"),
        ("<box>(20,10),(100,50)</box>", "<box>(100,100),(500,500)</box>"),
        ("<|box_start|>(20,10),(100,50)<|box_end|>", "<|box_start|>(100,100),(500,500)<|box_end|>"),
    ],
)
def test_numbers_change_and_nothing_else(text, expected):
    assert rewritten(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        'Answer with {"bbox_2d": [x1, y1, x2, y2], "label": "..."}.',
        'None: {"bbox_2d": [], "point": null, "bbox": "left"}',
        "Write <box>x1,y1,x2,y2</box> or <box></box>; a <box> has corners.",
        '{"bboxes": [1, 2, 3, 4], "my_bbox": [900, 900, 1, 1], "pointer": [1, 2]}',
        "It is [20, 10, 100, 50] and 3 < 4.",
        "",
    ],
)
def test_what_is_no_mark_is_left_alone(text):
    original = sample(text, question=text)
    assert find_marks(text) == []
    assert marked_boxes(original, "pixels") == [[]]
    assert rewrite(original, [WHOLE], [(50, 100)], "pixels", "thousand") == original


def test_a_mark_says_what_and_where():
    text = '<box image=2>20,10,100,50</box> {"image": 3, "point_2d": [1.5, 2]}'
    box, point = find_marks(text)
    assert (box.kind, box.numbers, box.image) == ("box", (20, 10, 100, 50), 2)
    assert text[box.start : box.end] == "<box image=2>20,10,100,50</box>"
    assert [text[slice(*span)] for span in box.spans] == ["20", "10", "100", "50"]
    assert (point.kind, point.numbers, point.image) == ("point", (1.5, 2), 3)
    assert point.box("pixels") == Box(1.5, 2, 1.5, 2)


@pytest.mark.parametrize(
    ("form", "style", "numbers", "expected"),
    [
        ("pixels", "seen_pixels", "20, 10, 100, 50", "10, 5, 50, 25"),
        ("pixels", "unit", "20, 10, 100, 50", "0.100, 0.100, 0.500, 0.500"),
        ("unit", "seen_pixels", "0.1, 0.1, 0.5, 1", "10, 5, 50, 50"),
        ("unit", "thousand", "0, 0.3333, 0.6667, 1.0", "0, 333, 667, 1000"),
        ("unit", "unit", "0, 0.33333, 0.66666, 1", "0.000, 0.333, 0.667, 1.000"),
        ("thousand", "seen_pixels", "100, 100, 500, 1000", "10, 5, 50, 50"),
        ("thousand", "unit", "100, 100, 500, 1000", "0.100, 0.100, 0.500, 1.000"),
        ("thousand", "thousand", "1, 2, 999, 1000", "1, 2, 999, 1000"),
        ("unit", "thousand", "0, 0, 1.0000000000000002, 1", "0, 0, 1000, 1000"),
        ("pixels", "unit", "0, -1e-9, 200.00000000000003, 100", "0.000, 0.000, 1.000, 1.000"),
        ("pixels", "thousand", "-0, 0, 0.05, 0.1", "0, 0, 0, 1"),
    ],
)
def test_every_form_becomes_every_style(form, style, numbers, expected):
    assert rewritten(f"<box>{numbers}</box>", form, style) == f"<box>{expected}</box>"


def test_a_flip_exchanges_left_and_right():
    view = View(100, 200, crop_height=100, crop_width=200, flipped=True)
    assert rewritten("<box>20,10,100,50</box>", view=view) == "<box>500,100,900,500</box>"
    assert rewritten("<point>20,10</point>", view=view) == "<point>900,100</point>"


def test_a_box_that_a_crop_cuts_ends_at_its_border():
    view = View(100, 200, top=20, left=50, crop_height=60, crop_width=100)
    assert rewritten("<box>20,10,100,50</box>", view=view) == "<box>0,0,500,500</box>"
    assert rewritten("<box>20,10,200,100</box>", view=view) == "<box>0,0,1000,1000</box>"
    flipped = View(100, 200, top=20, left=50, crop_height=60, crop_width=100, flipped=True)
    assert rewritten("<box>20,10,100,50</box>", view=flipped) == "<box>500,0,1000,500</box>"


@pytest.mark.parametrize("mark", ["<box>0,30,50,40</box>", "<box>60,0,70,20</box>", "<point>49,30</point>"])
def test_a_mark_outside_of_the_crop_is_refused(mark):
    view = View(100, 200, top=20, left=50, crop_height=60, crop_width=100)
    with pytest.raises(DataError, match=rf"sample mine/7: its text has `{mark}`: it lies outside of what is seen of"):
        rewritten(mark, view=view)


MEND = r"mend the numbers, or say with the entry's `coordinates` how they are written"


@pytest.mark.parametrize(
    ("form", "text", "problem"),
    [
        ("pixels", "<box>0,0,201,50</box>", rf"it reaches beyond its picture of 200 x 100 pixels; {MEND}"),
        ("pixels", "<point>0,100.001</point>", r"it reaches beyond its picture of 200 x 100 pixels"),
        ("pixels", "<box>-1,0,20,50</box>", r"-1 is outside of what `coordinates: pixels` allows, 0 or more; " + MEND),
        ("pixels", '"bbox": [0, 0, NaN, 50]', r"nan is outside of what `coordinates: pixels` allows, 0 or more"),
        ("pixels", '"bbox": [0, 0, Infinity, 50]', r"inf is outside of what `coordinates: pixels` allows"),
        ("pixels", '"bbox": [0, 0, 1e999, 50]', r"inf is outside of what `coordinates: pixels` allows"),
        ("unit", "<box>0,0,1.01,1</box>", r"1\.01 is outside of what `coordinates: unit` allows, 0 to 1; " + MEND),
        ("thousand", "<point>0,1000.002</point>", r"1000\.002 is outside of what"),
        ("unit", "<box>0,0,NaN,1</box>", r"nan is outside of what `coordinates: unit` allows, 0 to 1"),
        ("thousand", "<point>1001,0</point>", r"1001 is outside of what `coordinates: thousand` allows, 0 to 1000"),
        ("pixels", "<box>20,0,10,50</box>", r"its second corner lies before its first; write left, top, right, bottom"),
        (
            "unit",
            '"bbox_2d": [0.5, 0.5, 0.5, 0.4]',
            r"its second corner lies before its first; .*not a width and a height",
        ),
    ],
)
def test_numbers_outside_of_the_form_are_refused(form, text, problem):
    with pytest.raises(DataError, match=rf"^sample mine/7: its text has `{re.escape(text)}`: {problem}"):
        rewritten(text, form)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            '"bbox_2d": [1, 2, 3]',
            r"3 numbers; write x1, y1, x2, y2 for each box, every one under a key, in a tag or in",
        ),
        ('"bbox": [1, 2, 3, 4, 5, 6, 7, 8]', r"8 numbers; write x1, y1, x2, y2 for each box"),
        ('"bbox": [[1, 2, 3, 4], 5]', r"5 numbers; write x1, y1, x2, y2 for each box"),
        ('"point_2d": [1, 2, 3]', r"3 numbers; write x, y for each point"),
        ("<point>1</point>", r"1 numbers; write x, y for each point"),
        ('"bbox": ["1", 2, 3, 4]', r"with '\"\"' among its numbers; write numbers alone"),
        ("<box>1,y,3,4</box>", r"with 'y' among its numbers; write numbers alone"),
        ("<box>1,2,3,4", r"which does not end; write the closing bracket or tag"),
        ("<box>1,2,3,4</point>", r"which does not end"),
        ('"bbox": [1, 2, 3', r"which does not end"),
        ("<|box_start|>(1,2),(3,4)", r"which does not end"),
    ],
)
def test_a_mark_that_cannot_be_read_is_refused(text, problem):
    for call in (lambda: rewritten(text), lambda: marked_boxes(sample(text), "pixels")):
        with pytest.raises(DataError, match=rf"^sample mine/7: its text has `.*`, {problem}"):
            call()


def test_a_long_mark_is_quoted_in_part():
    with pytest.raises(DataError, match=r"has `<box>(1,){37}1\.\.\.`, 100 numbers; write"):
        rewritten("<box>" + ",".join(["1"] * 100) + "</box>")


def test_each_mark_follows_its_own_picture():
    text = (
        '[{"image": 2, "bbox_2d": [20, 10, 100, 50]}, {"point": [50, 50], "label": {"image": 2}, "image": 1}, '
        '{"image": 2, "parts": [{"bbox": [0, 0, 20, 10]}]}] <point image="1">50,50</point>'
    )
    views = [View.whole(100, 100), WHOLE]
    found = rewrite(sample(text, 2), views, [(50, 50), (50, 100)], "pixels", "thousand").messages[1].text
    assert found == (
        '[{"image": 2, "bbox_2d": [100, 100, 500, 500]}, {"point": [500, 500], "label": {"image": 2}, "image": 1}, '
        '{"image": 2, "parts": [{"bbox": [0, 0, 100, 100]}]}] <point image="1">500,500</point>'
    )
    assert marked_boxes(sample(text, 2), "pixels") == [
        [Box(50, 50, 50, 50), Box(50, 50, 50, 50)],
        [Box(20, 10, 100, 50), Box(0, 0, 20, 10)],
    ]


@pytest.mark.parametrize(
    ("media", "text", "problem"),
    [
        (2, '{"bbox": [1, 2, 3, 4]}', r'but the sample has 2 pictures; add "image": n to its object, counted from 1'),
        (2, '"image": 2, {"bbox": [1, 2, 3, 4]}', r"but the sample has 2 pictures"),
        (2, "<box>1,2,3,4</box>", r"but the sample has 2 pictures; add the picture: <box image=n>, counted from 1"),
        (2, "<|box_start|>(1,2),(3,4)<|box_end|>", r"but the sample has 2 pictures; add the picture: <box image=n>"),
        (2, '{"bbox": [1, 2, 3, 4], "image": 3}', r"for picture 3, but the sample has 2, counted from 1"),
        (2, '{"image": 0, "bbox": [1, 2, 3, 4]}', r"for picture 0, but the sample has 2, counted from 1"),
        (1, "<box image=2>1,2,3,4</box>", r"for picture 2, but the sample has 1, counted from 1"),
        (0, "<box>1,2,3,4</box>", r"but the sample has no picture; add it, or leave `coordinates` null"),
    ],
)
def test_a_mark_without_its_picture_is_refused(media, text, problem):
    with pytest.raises(DataError, match=rf"^sample mine/7: its text has `.*`: {problem}"):
        rewritten(text, media=media)
    with pytest.raises(DataError, match=rf"^sample mine/7: its text has `.*`: {problem}"):
        marked_boxes(sample(text, media), "pixels")


def test_an_only_picture_needs_no_number():
    # It may have one of its own.
    text = '{"image": 139, "bbox": [20, 10, 100, 50]}'
    assert rewritten(text) == '{"image": 139, "bbox": [100, 100, 500, 500]}'


def test_questions_and_targets_are_rewritten_with_the_answers():
    seen = [WHOLE], [(50, 100)], "pixels", "thousand"
    asked = rewrite(sample("<point>20,10</point>", question="What is in <box>20,10,100,50</box>?"), *seen)
    assert [m.text for m in asked.messages] == ["What is in <box>100,100,500,500</box>?", "<point>100,100</point>"]
    assert asked.media == sample("").media
    target = Preference("<point>20,10</point>", "<point>200,100</point>")
    chosen = rewrite(sample("", target=target), *seen).target
    assert chosen == Preference("<point>100,100</point>", "<point>1000,1000</point>")
    rated = Rated("<point>20,10</point>", False, mismatched="<point>200,100</point>")
    found = rewrite(sample("", target=rated), *seen).target
    assert found == Rated("<point>100,100</point>", False, mismatched="<point>1000,1000</point>")
    beyond = Rated("<point>20,10</point>", False, mismatched="<point>201,10</point>")  # of a wider picture
    assert rewrite(sample("", target=beyond), *seen).target == Rated("<point>100,100</point>", False)
    assert marked_boxes(sample("", target=beyond), "pixels") == [[Box(20, 10, 20, 10)]]
    solution = sample("", target=Solution("<point>20,10</point>"))
    assert rewrite(solution, *seen).target == Solution("<point>100,100</point>")
    assert marked_boxes(solution, "pixels") == [[Box(20, 10, 20, 10)]]
    assert marked_boxes(sample("", target=target), "pixels") == [[Box(20, 10, 20, 10), Box(200, 100, 200, 100)]]
    labels = Labels(("<point>20,10</point>",))
    assert rewrite(sample("", target=labels), *seen).target == labels


def test_the_time_grows_with_the_text_alone():
    # Seconds; ten times as much, searched anew for each mark, would take minutes.
    objects = [{"bbox_2d": [1, 2, 3, 4], "image": 1, "label": "{" * 3} for _ in range(8_000)]
    start = time.perf_counter()
    assert len(find_marks(json.dumps({"objects": objects}))) == 8_000
    assert find_marks('"bbox": [' * 50_000) == find_marks("<box" * 50_000) == find_marks("{" * 200_000) == []
    assert time.perf_counter() - start < 10


# ---------------------------------------------------------------------------------------------------------------------
# What the numbers say, against the pixels of a rectangle that was drawn there.


def drawn(rng: np.random.Generator) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """A bright rectangle on a dark ground, and its left, top, right, bottom in pixels."""
    height, width = rng.integers(40, 200, 2).tolist()
    left, top = int(rng.integers(0, width - 20)), int(rng.integers(0, height - 20))
    right, bottom = int(rng.integers(left + 15, width + 1)), int(rng.integers(top + 15, height + 1))
    pixels = np.full((height, width, 3), 50, np.uint8)
    pixels[top:bottom, left:right] = (200, 180, 190)
    return pixels, (left, top, right, bottom)


def found_box(picture: np.ndarray, seen: tuple[int, int]) -> np.ndarray:
    """Where the rectangle is in the picture as the model sees it: left, top, right, bottom."""
    resized = Pillow.fromarray(picture).resize(seen[::-1], Pillow.Resampling.BICUBIC)
    grey = np.asarray(resized.convert("L")).astype(float)
    rows, columns = np.nonzero(grey > (grey.max() + grey.min()) / 2)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def written_as(box: tuple[int, ...], form: CoordinateForm, height: int, width: int) -> list[float]:
    side = {"pixels": (1, 1), "unit": (1 / width, 1 / height), "thousand": (1000 / width, 1000 / height)}[form]
    return [value * scale for value, scale in zip(box, side * (len(box) // 2), strict=True)]


def read_back(text: str, style: CoordinateStyle, seen: tuple[int, int]) -> list[np.ndarray]:
    """The marks of a rewritten text, in pixels of the picture as the model sees it."""
    height, width = seen
    scale = {"seen_pixels": (1, 1), "unit": (width, height), "thousand": (width / 1000, height / 1000)}[style]
    return [np.array(mark.numbers) * (scale * (len(mark.numbers) // 2)) for mark in find_marks(text)]


@pytest.mark.parametrize(
    "augment", [None, Augmentation(crop=0.3, flip=0.5), Augmentation(crop=0.4, flip=0.5, colour=0.3)]
)
def test_boxes_follow_what_is_drawn(augment):
    rng = np.random.default_rng(0)
    changed = 0
    for key, (form, style) in zip(range(270), itertools.cycle(itertools.product(FORMS, STYLES)), strict=False):
        pixels, box = drawn(rng)
        height, width = pixels.shape[:2]
        centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        answer = json.dumps({"bbox_2d": written_as(box, form, height, width)})
        asked = sample(answer, question=f"<point>{written_as(centre, form, height, width)}</point>")
        (keep,) = marked_boxes(asked, form)
        view = draw_view(augment, height, width, key, keep)
        seen = tuple((rng.integers(2, 9, 2) * 28).tolist())
        shown = augmented(Pillow.fromarray(pixels), view, augment, key)
        told = rewrite(asked, [view], [seen], form, style)
        (point,), (found,) = (read_back(message.text, style, seen) for message in told.messages)
        expected = found_box(np.asarray(shown), seen)
        assert np.abs(found - expected).max() <= 1, (key, form, style, view, found, expected)
        assert np.abs(point - (expected[:2] + expected[2:]) / 2).max() <= 1
        changed += view != View.whole(height, width)
    assert changed == (0 if augment is None else 270) or changed > 250


def test_boxes_follow_every_frame_of_a_video():
    rng = np.random.default_rng(1)
    augment = Augmentation(crop=0.3, flip=0.5, colour=0.2)
    for key in range(30):
        pixels, box = drawn(rng)
        frames = np.stack([pixels, np.clip(pixels.astype(int) + 20, 0, 255).astype(np.uint8)])
        clip = Sample("mine/7", (Message("user", (Video(Path("/v.mp4")), f"<box>{box}</box>")),))
        view = draw_view(augment, *pixels.shape[:2], key, marked_boxes(clip, "pixels")[0])
        told = rewrite(clip, [view], [(140, 168)], "pixels", "seen_pixels")
        (found,) = read_back(told.messages[0].text, "seen_pixels", (140, 168))
        for frame in augmented(frames, view, augment, key):
            assert np.abs(found - found_box(frame, (140, 168))).max() <= 1
