"""What a page says of samples is what training does to them."""

import os
import signal
import time
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest

from tests.previewing.making import BAD, BOX, SUPERVISED, dataset, encoder, shown, write_samples
from tests.support import compose, tiny, tiny_processor
from vlmft.config.media import Augmentation, MediaRules
from vlmft.data.run_data import open_run_data
from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.previewing.album import Album
from vlmft.previewing.samples import AnyKind, Frame, ShownSample, show
from vlmft.previewing.visits import Visit, by_id, first
from vlmft.types import Image, Labels, Message, Preference, Rated, Sample, Solution, Target, Video


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_samples(tmp_path)


def runs(sample: ShownSample) -> list[str]:
    """The supervised pieces, one text for each unbroken run."""
    return ["".join(p.text for p in run) for asked, run in groupby(sample.pieces, lambda p: p.supervised) if asked]


def test_a_picture_whose_pixels_cannot_be_told_is_shown_as_it_is_in_its_file(path: Path) -> None:
    """`model=auto` of a class whose pixels are flat patches; the marks are drawn all the same."""
    family = compose("model=auto", f"model.path={tiny().folder()}", "model.coordinate_style=thousand").model
    box = Message("user", (Image(path.parent / "a.png"), "Where? <box>10, 10, 50, 40</box>"))
    sample = Sample("mine/a", (box, Message("assistant", ("There.",))), rules=MediaRules(coordinates="pixels"))
    album = Album()
    (found,) = show([Visit(0, "mine/a", "mine", 7, sample)], Encoder(family, family.load_processor()), album)
    assert found.error == ""
    (medium,) = found.media
    assert (medium.original, medium.seen, medium.num_tokens) == (
        "112 x 56",
        "as the checkpoint's processor resizes it",
        8,
    )
    (frame,) = medium.frames
    assert frame == Frame(0, 56, 112, "as it is in its file: how the tower gets it, model=auto cannot tell", True)
    assert [mark.text for mark in medium.marks] == ["<box>89, 179, 446, 714</box>"]


def test_the_tokens_and_the_mask_are_those_of_training(path: Path) -> None:
    samples = shown(path, *SUPERVISED)
    features = encoder().family.feature_tokens(tiny_processor())
    for sample in samples:
        assert isinstance(sample.visit.found, Sample)
        encoded = encoder().encode(sample.visit.found, sample.visit.key)
        ids = [token for piece in sample.pieces if piece.kind != "vision" for token in piece.ids]
        assert ids == [token for token in encoded.input_ids.tolist() if token not in features]
        assert runs(sample) == SUPERVISED[sample.visit.id.removeprefix("mine/")]
        assert (sample.num_tokens, sample.num_vision) == (encoded.num_tokens, encoded.num_vision_tokens)
        assert sample.num_supervised == encoded.num_supervised > 0
        assert (sample.error, sample.answer) == ("", None)


def test_pictures_go_from_their_file_to_the_tower(path: Path) -> None:
    album = Album()
    several, video = shown(path, "several", "video", album=album)
    a, b = several.media
    assert (a.name, a.path, a.original, a.seen, a.num_tokens) == (
        "picture 1",
        f"{path.parent}/a.png",
        "112 x 56",
        "112 x 56",
        8,
    )
    assert (b.name, b.original, b.seen, b.num_tokens) == ("picture 2", "56 x 84", "56 x 84", 6)
    assert (album.pixels(b.frames[0].picture) == np.asarray(PIL.Image.open(path.parent / "b.png"))).all()
    (clip,) = video.media
    assert (clip.name, clip.original, clip.seen, clip.num_tokens) == ("video 1", "84 x 56", "6 times 84 x 56", 18)
    assert [frame.label for frame in clip.frames] == [
        "0.00 s",
        "0.50 s",
        "1.00 s",
        "1.50 s",
        "2.00 s",
        "the last again",
    ]
    assert clip.frames[0] == Frame(2, 56, 84, "0.00 s", is_marked=False)
    for number, frame in zip([0, 1, 2, 3, 4, 4], clip.frames, strict=True):
        assert (album.pixels(frame.picture) == np.asarray(PIL.Image.open(path.parent / f"clip/{number}.png"))).all()
    pieces = [piece.text for sample in (several, video) for piece in sample.pieces if piece.kind == "vision"]
    assert pieces == ["picture 1: 8 tokens", "picture 2: 6 tokens", "video 1: 18 tokens"]


def test_boxes_and_points_lie_where_the_text_says(path: Path) -> None:
    ((medium,),) = (sample.media for sample in shown(path, "boxes"))
    box, point = medium.marks
    assert (box.is_box, box.left, box.top, box.width, box.height) == (True, 28 / 112, 14 / 56, 28 / 112, 28 / 56)
    assert (point.is_box, point.left, point.top, point.width, point.height) == (False, 14 / 112, 7 / 56, 0, 0)
    assert [mark.text for mark in medium.marks] == BOX.strip("{}").split("} and {")
    assert medium.frames[0].is_marked


def test_an_augmented_picture_has_its_boxes_moved(path: Path) -> None:
    fields: dict[str, Any] = {"augment": {"flip": 1.0}, "image": {"max_pixels": 14 * 28 * 28}}
    (sample,) = shown(path, "boxes", **fields)
    (medium,) = sample.media
    assert medium.changes == ("mirrored",)
    box, point = medium.marks
    assert (box.left, box.width) == (1 - 56 / 112, 28 / 112) and point.left == 1 - 14 / 112
    assert runs(sample)[0].startswith('{"bbox_2d": [56, 14, 84, 42]}')
    assert sample.rules == (
        "dataset.mine.image.max_pixels=10976",
        "dataset.mine.augment.flip=1.0",
        "dataset.mine.coordinates=pixels",
    )


def test_a_family_that_cuts_tiles_has_its_boxes_on_the_whole(path: Path) -> None:
    family = compose("model=tiny_internvl3").model
    data = open_run_data(dataset(path), {}, 0.0, seed=0)
    album = Album()
    (sample,) = show(by_id(data, ["mine/boxes"]), Encoder(family, family.load_processor()), album)
    (medium,) = sample.media
    *tiles, whole = medium.frames
    assert [tile.label for tile in tiles] == [f"tile {n} of {len(tiles)}" for n in range(1, len(tiles) + 1)] != []
    assert [frame.is_marked for frame in medium.frames] == [False] * len(tiles) + [True]
    assert (whole.width, whole.height, whole.label) == (112, 56, "not seen like this: whole, to show the marks")
    assert (album.pixels(whole.picture) == np.asarray(PIL.Image.open(path.parent / "a.png"))).all()
    box, _ = medium.marks
    assert (box.left, box.top, box.width, box.height) == pytest.approx((0.25, 0.25, 0.25, 0.5), abs=1e-3)


def test_a_family_that_squeezes_frames_has_its_boxes_on_one_as_it_was(path: Path) -> None:
    """InternVL sees frames of 84 x 56 as squares."""
    family = compose("model=tiny_internvl3").model
    clip = Video(path.parent / "clip", tuple(path.parent / f"clip/{n}.png" for n in range(5)))
    messages = (Message("user", (clip, "Where?")), Message("assistant", ("<box>21,14,42,28</box>",)))
    sample = Sample("mine/1", messages, rules=MediaRules(coordinates="pixels"))
    album = Album()
    (found,) = show([Visit(0, sample.id, "mine", 7, sample)], Encoder(family, family.load_processor()), album)
    *frames, whole = found.media[0].frames
    assert {(frame.width, frame.height, frame.is_marked) for frame in frames} == {(56, 56, False)}
    assert (whole.width, whole.height, whole.is_marked) == (84, 56, True)
    assert (album.pixels(whole.picture) == np.asarray(PIL.Image.open(path.parent / "clip/0.png"))).all()


def test_a_template_that_moves_media_moves_no_box(path: Path) -> None:
    """LLaVA-OneVision's writes pictures before videos; a text counts both as its author wrote them."""
    family = compose("model=tiny_llava_onevision").model
    clip = Video(path.parent / "clip", tuple(path.parent / f"clip/{n}.png" for n in range(5)))
    said = (clip, Image(path.parent / "a.png"), "\nWhere?")
    answer = "<box image=2>28,14,56,42</box> <point image=1>42,28</point>"
    sample = Sample(
        "mine/1", (Message("user", said), Message("assistant", (answer,))), rules=MediaRules(coordinates="pixels")
    )
    (found,) = show([Visit(0, sample.id, "mine", 7, sample)], Encoder(family, family.load_processor()), Album())
    picture, video = found.media
    assert (found.error, picture.name, video.name) == ("", "picture 1", "video 1")
    assert [piece.text.partition(":")[0] for piece in found.pieces if piece.kind == "vision"] == [
        "picture 1",
        "video 1",
    ]
    (box,), (point,) = picture.marks, video.marks
    assert (box.left, box.top, box.width, box.height) == (0.25, 0.25, 0.25, 0.5)
    assert (point.left, point.top) == (0.5, 0.5)


def test_held_out_samples_are_prompts(path: Path) -> None:
    data = open_run_data(dataset(path), dataset(path, augment=Augmentation(flip=1.0)), 0.0, seed=0)
    several, boxes = show(by_id(data, ["mine/several", "mine/boxes"], held_out=True), encoder(), Album())
    text = "".join(piece.text for piece in several.pieces)
    assert text.endswith("Sure?<|im_end|>\n<|im_start|>assistant\n") and "They are equal." in text
    assert (several.num_supervised, runs(several), several.answer) == (0, [], "yes")
    assert (boxes.answer, boxes.media[0].changes) == (BOX, ())
    assert boxes.media[0].marks and "dataset.mine.augment.flip=1.0" not in boxes.rules


def test_bad_samples_are_shown_with_their_errors(path: Path) -> None:
    damaged, missing = shown(path, *BAD)
    assert damaged.error.startswith(
        f"mine/damaged ({path}:1, row 5): {path.parent}/damaged.png is no picture in a known"
    )
    assert missing.error.startswith(f"mine/missing ({path}:1, row 6): gone <script>.png does not exist in media_dir")
    assert damaged.sample and damaged.sample.messages[0].text == "What <i>is</i> it?"
    assert (missing.sample, missing.pieces, damaged.pieces, damaged.num_tokens) == (None, (), (), 0)


def test_one_that_is_too_long_says_so(path: Path) -> None:
    family = encoder().family
    data = open_run_data(dataset(path), {}, 0.0, seed=0)
    samples = show(by_id(data, ["mine/several", "mine/none"]), Encoder(family, tiny_processor(), 60), Album())
    assert "tokens, 14 of them vision tokens, exceed batching.max_tokens=60" in samples[0].error
    assert not samples[1].error


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (Preference("good", "bad"), "chosen: good\nrejected: bad"),
        (Rated("yes", True), "good answer: yes"),
        (Rated("no", False), "bad answer: no"),
        (Solution("42"), "solution: 42"),
        (Labels(("cat", "dog"), multi=True), "class: cat, dog"),
    ],
)
def test_a_target_is_shown_although_nothing_imitates_it(target: Target, said: str) -> None:
    sample = Sample("mine/1", (Message("user", ("Hello",)),), "f:1", target=target)
    trained, prompt = show(
        [Visit(0, sample.id, "mine", 7, sample), Visit(1, sample.id, "mine", None, sample)], encoder(), Album()
    )
    assert "learns from such" in trained.error
    assert (trained.answer, prompt.answer, prompt.error) == (said, said, "")


@pytest.mark.parametrize(
    ("target", "trained"),
    [(Preference("Red.", "Blue."), "Red.<|im_end|>Blue.<|im_end|>"), (Solution("42"), "")],
)
def test_a_target_is_encoded_as_the_trainer_does_that_learns_from_it(target: Target, trained: str) -> None:
    """Of a pair both answers and the ends of their turns are trained; a solution stands beside its prompt."""
    sample = Sample("mine/1", (Message("user", ("Hello",)),), "f:1", target=target)
    (found,) = show([Visit(0, sample.id, "mine", 7, sample)], AnyKind(tiny(), tiny_processor()), Album())
    assert (found.error, found.num_supervised) == ("", len(tiny_processor().tokenizer(trained).input_ids))


def test_a_decoder_that_crashes_spoils_its_own_sample_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Encoder.encode

    def encode(self: Encoder, sample: Sample, key: int | None = None) -> Encoded:
        if sample.id == "mine/none":
            import faulthandler

            faulthandler.disable()
            os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(60)
        return real(self, sample, key)

    monkeypatch.setattr(Encoder, "encode", encode)
    data = open_run_data(dataset(path), {}, 0.0, seed=0)
    samples = show(by_id(data, ["mine/video", "mine/none", "mine/several"]), encoder(), Album(), num_workers=1)
    assert [bool(sample.error) for sample in samples] == [False, True, False]
    assert samples[1].error.startswith("mine/none: Segmentation fault (signal 11) ended the loader process")


def test_what_there_is_no_time_for_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 10.5, 11.0])
    monkeypatch.setattr("vlmft.previewing.samples.time", SimpleNamespace(monotonic=lambda: next(clock)))
    data = open_run_data(dataset(path), {}, 0.0, seed=0)
    visits = by_id(data, ["mine/none", "mine/missing", "mine/several", "mine/video"])
    samples = show(visits, Encoder(encoder().family, tiny_processor()), Album(), within_s=10)
    late = "not looked at: the preview of a run gets 10 s; python -m vlmft.preview takes its time"
    assert [sample.error for sample in samples] == ["", samples[1].error, late, late]
    assert samples[1].error.startswith("mine/missing")


def test_the_same_visit_is_the_same_page(path: Path) -> None:
    """The augmentation's key comes with the visit, and with nothing else."""
    augment = Augmentation(crop=0.5, colour=0.5)
    data = open_run_data(dataset(path, augment=augment), {}, 0.0, seed=0)
    changes = []
    for visits in (first(data, 30), first(data, 3, start=2)):
        album = Album()
        for sample in show(visits, encoder(), album):
            pixels = [album.pixels(frame.picture).tobytes() for m in sample.media for frame in m.frames]
            changes.append((sample.visit.number, sample.visit.id, [m.changes for m in sample.media], pixels))
    assert changes[-3:] == changes[2:5]
    seen = {(name, str(change)) for _, name, change, _ in changes if name == "mine/boxes"}
    assert len(seen) > 2  # other passes crop otherwise
