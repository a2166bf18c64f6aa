import json
import time
from collections import Counter, defaultdict
from pathlib import Path

import av
import numpy as np
import pytest

from vlmft.data import DemoCaptions, DemoVideo
from vlmft.data.demo.shapes_files import BACKGROUNDS, COLOURS
from vlmft.data.demo.videos_files import QUESTIONS, SCHEMA
from vlmft.data.split import refuse_overlap

FEW = {"train_videos": 24, "eval_videos": 12, "image_size": 56, "seed": 0}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        questions, captions = DemoVideo(**FEW), DemoCaptions(**FEW)
        return {
            "questions": (questions.open("demo"), questions.open_eval("demo")),
            "captions": (captions.open("demo"), captions.open_eval("demo")),
        }


def decoded(path: Path) -> np.ndarray:
    """The frames [T, H, W, 3]."""
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]).astype(int)


def nearest(colour: np.ndarray, names: dict[str, tuple[int, int, int]]) -> str:
    return min(names, key=lambda name: np.abs(colour - names[name]).sum())


def seen(path: Path) -> dict[str, str]:
    """What a video shows, from its pixels alone: the ground where most pixels agree, the square where they differ."""
    frames = decoded(path)
    ground = np.median(frames, axis=(0, 1, 2))
    ink = (np.abs(frames - ground) > 60).any(-1)
    return {
        "start": nearest(frames[0][ink[0]].mean(0), COLOURS),
        "end": nearest(frames[-1][ink[-1]].mean(0), COLOURS),
        "background": nearest(ground, BACKGROUNDS),
    }


def test_questions_are_a_llava_dataset_on_disk(opened):
    train, held_out = opened["questions"]
    assert (len(train), len(held_out)) == (72, 36)
    row = json.loads(train.data_file.read_text())[0]
    assert set(row) == {"id", "video", "conversations"}
    assert row["conversations"][0]["value"].startswith("<video>\n")
    for source in (train, held_out):
        samples = [source[row] for row in range(len(source))]
        assert {(len(sample.videos), len(sample.messages)) for sample in samples} == {(1, 2)}
        assert {sample.messages[0].text for sample in samples} == {*QUESTIONS.values()}
        assert len({sample.videos[0].path for sample in samples}) == len(source) / 3


def test_answers_are_true_of_the_video(opened):
    for source in opened["questions"]:
        shown = {
            sample.videos[0].path: seen(sample.videos[0].path) for sample in (source[i] for i in range(len(source)))
        }
        for row in range(len(source)):
            question, answer = source[row].messages
            asked = next(key for key, text in QUESTIONS.items() if text == question.text)
            assert answer.text == shown[source[row].videos[0].path][asked]


def test_the_square_moves_across(opened):
    for row in range(0, 72, 3):
        frames = decoded(opened["questions"][0][row].videos[0].path)
        ink = (np.abs(frames - np.median(frames, axis=(0, 1, 2))) > 60).any(-1)
        first, last = (np.argwhere(ink[time]).mean(0) for time in (0, -1))
        moved = np.abs(last - first)
        assert moved.max() > 56 / 2 - 2 and moved.min() < 1


def test_videos_are_h264_of_8_to_16_frames(opened):
    lengths = set()
    for row in range(0, 72, 3):
        with av.open(str(opened["questions"][0][row].videos[0].path)) as file:
            stream = file.streams.video[0]
            assert (stream.codec_context.name, stream.width, stream.height, stream.average_rate) == ("h264", 56, 56, 4)
            lengths.add(stream.frames)
    assert lengths <= {*range(8, 17)} and len(lengths) > 4


def test_no_two_videos_are_equal(opened):
    sources = [source for pair in opened.values() for source in pair]
    for pair in opened.values():
        paths = {source[row].videos[0].path for source in pair for row in range(len(source))}
        assert len({decoded(path).tobytes() for path in paths}) == len(paths) == 36
    refuse_overlap([(sources[0], range(72))], [(sources[1], range(36))])
    refuse_overlap([(sources[2], range(24))], [(sources[3], range(12))])


def test_the_best_guess_without_the_video_stays_below_0_25(opened):
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for row in range(36):
        question, answer = opened["questions"][1][row].messages
        answers[question.text][answer.text] += 1
    assert [sorted(counted.values()) for counted in answers.values()] == [[2] * 6, [2] * 6, [3] * 4]
    assert sum(max(counted.values()) for counted in answers.values()) / 36 < 0.25


def test_captions_are_true_and_follow_their_schema(opened):
    for source in opened["captions"]:
        assert json.loads((source.data_file.parent / "schema.json").read_text()) == SCHEMA
        for row in range(len(source)):
            sample, shown = source[row], seen(source[row].videos[0].path)
            caption = json.loads(sample.messages[1].text)
            assert [*caption] == [*SCHEMA["properties"]]
            assert caption["colours"] == [name for name in COLOURS if name in (shown["start"], shown["end"])]
            assert caption["event"] == ("none" if shown["start"] == shown["end"] else "colour_change")
            assert caption["background"] == shown["background"]
            does = "stays" if shown["start"] == shown["end"] else "turns"
            assert caption["caption"] == f"A {shown['start']} square {does} {shown['end']}."


def test_captions_are_the_folder_that_the_video_playbook_documents(opened):
    train, _ = opened["captions"]
    assert train.data_file.name == "metadata.jsonl"
    row = json.loads(train.data_file.read_text().splitlines()[0])
    assert {*row} == {"video", *SCHEMA["properties"]}
    assert (train.data_file.parent / row["video"]).is_file()


def test_the_same_parameters_give_the_same_files(monkeypatch, tmp_path, opened):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "again"))
    for name, spec in (("questions", DemoVideo(**FEW)), ("captions", DemoCaptions(**FEW))):
        before, again = opened[name][0].data_file.parent, spec.open("demo").data_file.parent
        files = [path.relative_to(before) for path in sorted(before.rglob("*.*"))]
        assert len(files) == 36 + (2 if name == "questions" else 3)
        assert all((before / file).read_bytes() == (again / file).read_bytes() for file in files)


def test_what_an_entry_says_is_passed_on(opened):
    few = FEW | {"train_videos": 1, "eval_videos": 1}
    source = DemoCaptions(**few, system_prompt="S", video={"num_frames": 4}).open("demo")
    assert source[0].messages[0].text == "S"
    assert source[0].rules.video.num_frames == 4
    other = DemoCaptions(**few | {"seed": 1}).open("demo")
    assert other.data_file.parent.name != source.data_file.parent.name


def test_the_default_dataset_takes_seconds():
    start = time.process_time()
    DemoVideo(**FEW | {"train_videos": 300, "eval_videos": 48}).open("demo")
    assert time.process_time() - start < 10
