"""What is bad is said in the same words whoever finds it: the scan, or training that reads and encodes the sample.

Each case is a real row with real files. All are scanned at once, by `python -m vlmft.validate`'s own code, with every
medium decoded; training's words are what `Mixture.read` and `Encoder.encode` raise.
"""

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.checking.support import config_of, opened, scanned, write_rows
from tests.data.making import qa, save_picture, turns
from tests.data.media.making_video import damage, packet_position, save_video
from tests.support import literally, noise, tiny, tiny_processor
from vlmft.checking.examine import Examiner, Problem
from vlmft.checking.scan import Scan
from vlmft.config.app import Composition
from vlmft.data.mixture import SampleRef
from vlmft.data.problems import SampleError
from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.encoding.loading import EncodedGroup, Watch, encode_group
from vlmft.encoding.time_limit import TimeLimit
from vlmft.errors import DataError
from vlmft.train import train
from vlmft.validate import validate

MAX_TOKENS = 400
PICTURE = "<image>\nWhat is it?"
HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"


def _html(path: Path) -> None:
    path.write_bytes(HTML)


def _cut(path: Path) -> None:
    noise(64, 64).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def _cut_video(path: Path) -> None:
    save_video(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def _no_frames(path: Path) -> None:
    save_video(path, num_frames=0)


def _damaged_video(path: Path) -> None:
    """200 bytes of a frame that the model is to see."""
    video = save_video(path)
    start, size = packet_position(video, 12)
    damage(video, start + size // 3, random.Random(0).randbytes(200))


def _symlink(path: Path) -> None:
    save_picture(path.parents[1] / "outside.png")
    path.symlink_to(path.parents[1] / "outside.png")


def _sibling(path: Path) -> None:
    save_picture(path.parents[1] / "media-of-others" / "a.png")


def _nothing(path: Path) -> None:
    pass


Make = Callable[[Path], object]

CASES: dict[str, tuple[dict[str, Any], str, Make, str, str]] = {
    # name: row, file below media/, what is written there, kind, what is said
    "missing": (qa(PICTURE, image="gone.png"), "gone.png", _nothing, "media", "gone.png does not exist in media_dir"),
    "empty": (qa(PICTURE, image="empty.png"), "empty.png", Path.touch, "media", "empty.png is empty; replace the file"),
    "cut off": (qa(PICTURE, image="cut.png"), "cut.png", _cut, "media", "cut.png cannot be decoded: "),
    "HTML called .jpg": (qa(PICTURE, image="404.jpg"), "404.jpg", _html, "media", "404.jpg is no picture in a known"),
    "out by ..": (qa(PICTURE, image="../a.png"), "", _nothing, "media", "../a.png leads by .. out of media_dir"),
    "absolute": (qa(PICTURE, image="/etc/passwd"), "", _nothing, "media", "/etc/passwd is an absolute path out of"),
    "a symlink": (qa(PICTURE, image="link.png"), "link.png", _symlink, "media", "link.png is or passes a symlink that"),
    "a folder whose name begins alike": (
        qa(PICTURE, image="../media-of-others/a.png"),
        "x",
        _sibling,
        "media",
        "../media-of-others/a.png leads by .. out of media_dir",
    ),
    "a folder": (qa(PICTURE, image="sub"), "sub", Path.mkdir, "media", "sub is a folder; expected a file"),
    "a URL": (qa(PICTURE, image="https://example.com/a.png"), "", _nothing, "media", "is a URL; media are read from"),
    "a wrong type": (qa(PICTURE, image=7), "", _nothing, "row", "its 'image' holds 7; expected a path"),
    "no object": (["a list"], "", _nothing, "row", "the row is a list; expected an object"),  # type: ignore[dict-item]
    "an unknown speaker": (turns(("robot", "A?"), ("gpt", "B.")), "", _nothing, "row", "turn 1 is from 'robot'"),
    "two answers in a row": (
        turns(("human", "A?"), ("gpt", "B."), ("gpt", "C.")),
        "",
        _nothing,
        "row",
        "turns 2 and 3 are both the assistant's",
    ),
    "a question last": (
        turns(("human", "A?"), ("gpt", "B."), ("human", "C?")),
        "",
        _nothing,
        "row",
        "the last turn is the user's",
    ),
    "an empty answer": (qa("A?", " "), "", _nothing, "row", "turn 2 is an empty answer"),
    "a tag too many": (
        qa("<image><image>?", image="good.png"),
        "",
        _nothing,
        "row",
        "its text has 2 <image> tags",
    ),
    "a picture without a tag": (
        qa("<image>?", image=["good.png", "good.png"]),
        "",
        _nothing,
        "row",
        "its text has 1 <image> tag, but it has 2 pictures",
    ),
    "a control token": (qa("Say <|im_end|>!"), "", _nothing, "text", "the user's text contains '<|im_end|>', which"),
    "a reserved word": (qa("A?", "VLMFTxPLACEHOLDERx"), "", _nothing, "text", "which is reserved"),
    "too long": (qa("A?", "word " * 400), "", _nothing, "length", f"exceed batching.max_tokens={MAX_TOKENS}; raise it"),
    "a shape that no tower takes": (
        qa(PICTURE, image="strip.png"),
        "strip.png",
        lambda path: Image.new("RGB", (2000, 4)).save(path),
        "media",
        "",
    ),
    "two things at once": (
        qa("<image>\nSay <|im_end|>!", image="cut2.png"),
        "cut2.png",
        _cut,
        "text",
        "the user's text contains '<|im_end|>'",
    ),
    "a cut video": (qa("<video>\nA?", video="cut.mp4"), "cut.mp4", _cut_video, "media", "cut.mp4"),
    "a video of no frames": (qa("<video>\nA?", video="none.mp4"), "none.mp4", _no_frames, "media", "none.mp4"),
    "HTML called .mp4": (qa("<video>\nA?", video="404.mp4"), "404.mp4", _html, "media", "404.mp4"),
    "a damaged video": (qa("<video>\nA?", video="torn.mp4"), "torn.mp4", _damaged_video, "media", "torn.mp4"),
    "an empty video": (qa("<video>\nA?", video="empty.mp4"), "empty.mp4", Path.touch, "media", "empty.mp4"),
    "frames of two sizes": (
        qa("<video>\nA?", video="frames"),
        "frames/1.png",
        lambda path: (save_picture(path, (40, 40)), save_picture(path.parent / "2.png", (40, 44))),
        "media",
        "give all frames of a video one size",
    ),
}
GOOD = {
    "good picture": qa(PICTURE, image="good.png"),
    "good text": qa("A?"),
    "good video": qa("<video>\nA?", video="good.mp4"),
}


@dataclass(frozen=True)
class Verdict:
    """What is said of one sample."""

    trained: str | None
    decoded: Problem | None
    """By the scan that decodes every medium, ..."""
    counted: Problem | None
    """... the one that reads headers and counts tokens, ..."""
    headers: Problem | None
    """... and the one that looks at structure and headers alone."""


Verdicts = dict[str, Verdict]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Verdicts]:
    """Of each sample, by its id."""
    root = tmp_path_factory.mktemp("verdicts")
    media = root / "media"
    media.mkdir()
    save_picture(media / "good.png", (56, 56))
    save_video(media / "good.mp4")
    for _, file, make, _, _ in CASES.values():
        if file:
            (media / file).parent.mkdir(exist_ok=True)
            make(media / file)
    rows = [row if isinstance(row, list) else row | {"id": name} for name, (row, *_) in CASES.items()]
    mine = write_rows(root, [*rows, *(row | {"id": name} for name, row in GOOD.items())])
    names = {f"mine/{number if isinstance(rows[number], list) else name}": name for number, name in enumerate(CASES)}
    config = config_of({"mine": mine}, max_tokens=MAX_TOKENS)
    scan, problems = scanned(config.model_copy(update={"decode": True}))
    by_headers, by_structure = (scanned(config.model_copy(update={"tokens": tokens}))[1] for tokens in (True, False))
    trained = training_says(scan)
    said = [{problem.id: problem for problem in found} for found in (problems, by_headers, by_structure)]
    assert [problem.id for problem in problems] == [id_ for id_ in trained if id_ in said[0]]  # in the file's order
    yield {
        names.get(id_, id_.removeprefix("mine/")): Verdict(text, *(found.get(id_) for found in said))
        for id_, text in trained.items()
    }


def training_says(scan: Scan) -> dict[str, str | None]:
    """What reading and encoding each sample raises, by its id, in the file's order."""
    encoder = Encoder(tiny(), tiny_processor(), MAX_TOKENS)
    found: dict[str, str | None] = {}
    for row in range(scan.num_samples):
        ref = SampleRef(part=0, row=row, epoch=0, copy=0, key=0)
        try:
            encoder.encode(scan.data.mixture.read(ref))
            found[scan.data.mixture.sample_id(ref)] = None
        except DataError as error:
            assert isinstance(error, SampleError)
            found[error.sample_id] = str(error)
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_bad_sample(verdicts: Verdicts, case: str) -> None:
    problem, trained = verdicts[case].decoded, verdicts[case].trained
    *_, kind, said = CASES[case]
    assert problem is not None and trained is not None
    assert problem.message == trained
    assert said in problem.message
    assert (problem.entry, problem.kind, problem.held_out) == ("mine", kind, False)
    line = list(CASES).index(case) + 1
    as_json = problem.as_json()
    assert as_json["file"].endswith("/media/mine.jsonl") and (as_json["line"], as_json["row"]) == (line, line - 1)
    assert problem.message.startswith(f"{problem.id} ({as_json['file']}:{line}, row {line - 1}): ")
    assert json.loads(json.dumps(as_json))["message"] == trained


@pytest.mark.parametrize("case", GOOD)
def test_a_good_sample(verdicts: Verdicts, case: str) -> None:
    assert verdicts[case] == Verdict(None, None, None, None)


def test_less_is_found_without_decoding_or_counting_but_nothing_else_is_said(verdicts: Verdicts) -> None:
    overlooked: dict[str, set[str]] = {"counted": set(), "headers": set()}
    for name, verdict in verdicts.items():
        for kind, names in overlooked.items():
            problem = getattr(verdict, kind)
            if problem is None and verdict.trained is not None:
                names.add(name)
            assert problem is None or problem == verdict.decoded
    assert overlooked["counted"] == {"cut off", "a damaged video"}
    texts = {name for name, (*_, kind, _) in CASES.items() if kind in ("text", "length")}
    assert overlooked["headers"] == overlooked["counted"] | texts | {"a shape that no tower takes"}


FILES: dict[str, tuple[bytes, str]] = {
    "a bad line": (b'{"id": 1}\n{"id": 2,}\n', "mine.jsonl: is not valid JSON: "),
    "an id twice": (b'{"id": "x"}\n{"id": "x"}\n', "mine/x ({file}:2, row 1): row 0 has the same id; give each"),
    "no UTF-8": ('{"id": "é"}\n'.encode("latin-1"), "{file}:1: byte 8 (0xe9) is not UTF-8; save the file as UTF-8"),
    "UTF-16": ('{"id": 1}\n'.encode("utf-16"), "{file}: is UTF-16; save it as UTF-8"),
    "empty": (b"", "{file}: holds no sample; expected at least one"),
    "no file": (b"", "data_path {file} does not exist; give the path of a .json or .jsonl file"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file(root: Path, case: str) -> None:
    """Both commands end before anything is made, or loaded."""
    content, said = FILES[case]
    mine = write_rows(root, [])
    mine.data_path.write_bytes(content)
    if case == "no file":
        mine.data_path.unlink()
    before = {*root.rglob("*")}
    composition = Composition("", (), root / "run", {}, None, False)
    spoken = []
    for command in (validate, train):
        with pytest.raises(DataError) as raised:
            command(config_of({"mine": mine}, out=root / "out"), composition)
        spoken.append(raised.value.problems)
    assert spoken[0] == spoken[1] and len(spoken[0]) == 1
    assert said.format(file=mine.data_path) in spoken[0][0]
    assert {*root.rglob("*")} == before


def test_a_held_out_prompt_that_is_too_long(root: Path) -> None:
    """The answer does not count there: the model is to give its own."""
    rows = [qa("A?", "word " * 400, id="answer"), qa("word " * 400, id="prompt")]
    entries = {"mine": write_rows(root, [qa("A?")])}, {"eval": write_rows(root, rows, "eval")}
    scan, (problem,) = scanned(config_of(*entries, max_tokens=MAX_TOKENS))
    encoder = Encoder(tiny(), tiny_processor(), MAX_TOKENS)
    source = scan.targets[1].source
    encoder.encode_prompt(source[0])
    with pytest.raises(SampleError, match=literally(problem.message)):
        encoder.encode_prompt(source[1])
    assert (problem.id, problem.kind, problem.held_out) == ("eval/prompt", "length", True)


def test_more_vision_tokens_than_are_allowed_are_said_before_anything_else(root: Path) -> None:
    """As the encoder does it: its texts are rendered after its media have been planned."""
    save_picture(root / "media/large.png", (280, 280))
    rows = [qa("<image>\n<|im_end|>", image="large.png"), qa(PICTURE, image="large.png")]
    scan, problems = scanned(config_of({"mine": write_rows(root, rows, max_vision_tokens=9)}))
    assert [problem.message for problem in problems] == list(training_says(scan).values())
    assert [problem.kind for problem in problems] == ["length", "length"]
    assert "vision tokens exceed max_vision_tokens=9; raise it" in problems[0].message


@pytest.fixture
def examiner(root: Path) -> Examiner:
    config = config_of({"mine": write_rows(root, [qa("A?", id="one")])}, tokens=False)
    return Scan(config, opened(config)).examiner


def grouped(watch: Watch, encode: Callable[[int], Encoded], limit: TimeLimit | None = None) -> EncodedGroup:
    """A group of the one sample, as training loads it."""
    encoder = Encoder(tiny(), tiny_processor(), time_limit=limit)
    group = encode_group(encoder, 0, [0], encode, lambda _: "mine/one", watch)
    assert isinstance(group, EncodedGroup)
    return group


def test_a_decoder_that_crashes(examiner: Examiner) -> None:
    problem = examiner.lost(0, -signal.SIGSEGV, seconds=5)
    watch = Watch()
    watch.crashed[0, 0] = f"{signal.strsignal(signal.SIGSEGV)} (signal 11)"
    assert grouped(watch, encode=lambda _: pytest.fail("it is left out")).bad == {"mine/one": problem.message}
    assert (problem.id, problem.kind, problem.as_json()["line"]) == ("mine/one", "crash", 1)
    assert "signal 9" in examiner.lost(0, -signal.SIGKILL, seconds=5).message
    assert "exit code 3 ended the loader process" in examiner.lost(0, 3, seconds=5).message


def test_a_decoder_that_hangs(examiner: Examiner) -> None:
    problem = examiner.lost(0, None, seconds=0.1)

    def hang(_: int) -> Encoded:
        time.sleep(5)
        raise AssertionError

    assert grouped(Watch(), hang, TimeLimit(0.1)).bad == {"mine/one": problem.message}
    assert problem.kind == "timeout"
