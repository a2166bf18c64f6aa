import dataclasses
import multiprocessing
import pickle
from pathlib import Path

import pytest

from tests.checking.support import config_of, opened, scanned, write_rows
from tests.data.making import Listed, qa, save_picture, turns
from tests.support import read_llava, tiny, tiny_processor, write_llava
from vlmft.checking import counts, workers
from vlmft.checking.counts import BAD, COUNTED, READ, TOO_LONG, TOO_MUCH_VISION, Counts, Target
from vlmft.checking.examine import Counter, Examiner, Problem, question_hash
from vlmft.checking.scan import Scan
from vlmft.config.media import MediaRules
from vlmft.encoding.encoder import Encoder
from vlmft.errors import DataError
from vlmft.evaluation import NoEvaluation
from vlmft.types import Image, Message, Rated, Sample, Solution, Video


def asking(*parts, answer: str = "A") -> int:
    return question_hash(Sample("a/1", (Message("user", parts), Message("assistant", (answer,)))))


def test_a_question_is_what_the_users_turns_say_and_show() -> None:
    picture, other = Image(Path("/a.png")), Image(Path("/b.png"))
    same = asking("What?", picture)
    assert asking("What?", picture, answer="B") == same
    different = [
        asking("What? ", picture),
        asking(picture, "What?"),
        asking("What?", other),
        asking("What?"),
        asking("What?", picture, picture),
        asking("What?", "/a.png"),
        asking("What?", Video(Path("/a.png"), frames=(Path("/a.png"),))),
        asking("What?", Image(Path("/a.png"), data=b"1")),
    ]
    assert len({same, *different}) == 1 + len(different)


def test_media_without_a_file_are_told_apart_by_their_bytes() -> None:
    assert asking(Image(Path("/t.tar/1"), b"x")) == asking(Image(Path("/t.tar/2"), b"x"))
    assert asking(Image(Path("/t.tar/1"), b"x")) != asking(Image(Path("/t.tar/1"), b"y"))


def test_a_held_out_answer_is_counted_where_it_is_judged() -> None:
    """A rated answer is read with its prompt, held out or not; a solution is compared with what is generated."""
    prompt = Sample("a/1", (Message("user", ("What?",)),))
    rated, checked = (dataclasses.replace(prompt, target=target) for target in (Rated("Two.", False), Solution("Two.")))
    counter = Counter(tiny(), tiny_processor(), None, learns=Rated)
    assert counter.judges_whole and counter.count(rated, whole=True).num_supervised > 0
    with pytest.raises(DataError, match="trainer=kto learns from one answer, good or bad"):
        counter.refuse(checked, whole=True)
    assert not Counter(tiny(), tiny_processor(), None, learns=Solution).judges_whole


def test_what_is_found_out_is_written_down(root: Path) -> None:
    save_picture(root / "media/a.png", (56, 56))
    frames = [f"f/{number}.png" for number in range(4)]
    for frame in frames:
        save_picture(root / "media" / frame, (56, 56))
    rows = [
        qa("A?"),
        qa("<image>\nA?", image="a.png"),
        qa("<image><image>A?", image=["a.png", "a.png"]),
        qa("<video>A?", video=frames),
        qa("<video><image>A?", video=[frames], image="a.png"),
        turns(("human", "A?"), ("gpt", "word " * 300)),
        {"id": "bad"},
    ]
    mine = write_rows(root, rows, max_vision_tokens=9)
    scan, problems = scanned(config_of({"mine": mine}, max_tokens=300))
    table = scan.table
    assert table["pictures"].tolist() == [0, 1, 2, 0, 1, 0, 0]
    assert table["videos"].tolist() == [0, 0, 0, 1, 1, 0, 0]
    good, over = READ | COUNTED, READ | COUNTED | BAD
    assert table["state"].tolist() == [
        *(good, good, good, good),
        over | TOO_MUCH_VISION,
        over | TOO_LONG,
        BAD,
    ]
    assert table["vision_tokens"].tolist() == [0, 4, 8, 8, 12, 0, 0]
    assert table["tokens"][5] > 300 and table["supervised_tokens"][5] > 300
    assert (table["question"][0], table["question"][5]) == (table["question"][5], table["question"][0])
    assert [(problem.id, problem.kind) for problem in problems] == [
        ("mine/4", "length"),
        ("mine/5", "length"),
        ("mine/bad", "row"),
    ]


def test_tokens_are_those_of_training(root: Path) -> None:
    save_picture(root / "media/a.png", (84, 56))
    more = turns(("human", "A"), ("gpt", "B"), ("human", "C"), ("gpt", "D"))
    mine = write_rows(root, [qa("<image>\nWhat is it?", image="a.png"), more])
    scan, _ = scanned(config_of({"mine": mine}, num_workers=1))
    encoder = Encoder(tiny(), tiny_processor())
    source = scan.targets[0].source
    encoded = [encoder.encode(source[row]) for row in range(2)]
    assert scan.table["tokens"].tolist() == [sample.num_tokens for sample in encoded]
    assert scan.table["vision_tokens"].tolist() == [sample.num_vision_tokens for sample in encoded]
    assert scan.table["supervised_tokens"].tolist() == [sample.num_supervised for sample in encoded]


def test_a_box_that_lies_outside(root: Path) -> None:
    save_picture(root / "media/a.png", (56, 56))
    inside, outside = '{"bbox_2d": [0, 0, 56, 20]}', '{"bbox_2d": [0, 0, 90, 20]}'
    rows = [qa("<image>\nWhere?", said, image="a.png") for said in (inside, outside)]
    mine = write_rows(root, rows, coordinates="pixels")
    _, (problem,) = scanned(config_of({"mine": mine}))
    assert (problem.id, problem.kind) == ("mine/1", "boxes")
    assert "it reaches beyond its picture of 56 x 56 pixels" in problem.message


def test_of_what_is_held_out_only_what_the_model_is_asked_is_encoded(root: Path) -> None:
    entries = {"mine": write_rows(root, [qa("A?")])}, {"eval": write_rows(root, [qa("word " * 200)] * 40, "eval")}
    scan, problems = scanned(config_of(*entries, max_tokens=200, max_samples=4))
    assert [problem.id for problem in problems] == [sample.id for sample in scan.data.held_out_samples(4)]
    assert len(problems) == 4
    assert len(scanned(config_of(*entries, max_tokens=200, max_samples=None))[1]) == 40
    assert scanned(config_of(*entries, max_tokens=200, evaluation=NoEvaluation()))[1] == []


def test_an_overlap_is_a_problem_of_its_own(root: Path) -> None:
    entries = {"mine": write_rows(root, [qa("A?"), qa("B?")])}, {"eval": write_rows(root, [qa("B?")], "eval")}
    _, (problem,) = scanned(config_of(*entries, tokens=False))
    assert problem.kind == "overlap"
    assert problem.message.startswith("1 training samples are also held out (training = held out): mine/1 = eval/0; ")
    assert {problem.as_json()[name] for name in ("file", "line", "row")} == {None}


def test_only_what_a_run_visits_is_looked_at(root: Path) -> None:
    mine = write_rows(root, [qa("A?", id=number) for number in range(40)], factor=0.25)
    scan, _ = scanned(config_of({"mine": mine}, tokens=False))
    assert scan.num_samples == 10


def test_a_place_in_parts() -> None:
    problem = Problem("a", "a/1", "/x: y, row 3.json:7, row 5", "row", "bad")
    assert [problem.as_json()[name] for name in ("file", "line", "row")] == ["/x: y, row 3.json", 7, 5]
    tar = dataclasses.replace(problem, place="/x.tar, row 5")
    assert [tar.as_json()[name] for name in ("file", "line", "row")] == ["/x.tar", None, 5]


def test_of_a_source_that_gives_no_lines_a_lost_sample_is_named_by_its_row() -> None:
    target = Target(Listed(["x"]), range(1), 0)  # type: ignore[arg-type]
    problem = Examiner([target], Counts(1), MediaRules(), None, False).lost(0, -11, 1)
    assert (problem.id, problem.place) == ("mine/x", "/data/mine.json, row 0")


def test_systems_that_do_not_fork(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "context", lambda: multiprocessing.get_context("spawn"))
    monkeypatch.setattr(workers, "context", lambda: multiprocessing.get_context("spawn"))
    save_picture(root / "media/a.png")
    mine = write_rows(root, [qa("A?"), qa("<image>\nA?", image="a.png"), qa("A?", "")])
    scan, (problem,) = scanned(config_of({"mine": mine}, tokens=False, num_workers=1))
    assert scan.table["pictures"].tolist() == [0, 1, 0] and problem.id == "mine/2"


def test_what_counts_tokens_may_be_pickled(root: Path) -> None:
    config = config_of({"mine": write_rows(root, [qa("A?"), qa("A?", "")])})
    scan = Scan(config, opened(config))
    counter = pickle.loads(pickle.dumps(scan.examiner.counter))
    examiner = Examiner(scan.targets, scan.counts, scan.examiner.rules, counter, decode=True)
    assert examiner(0) is None
    problem = examiner(1)
    assert problem is not None and "turn 2 is an empty answer" in problem.message


def test_a_prompt_has_to_leave_room_for_its_completion(tmp_path: Path) -> None:
    sample = read_llava(write_llava(tmp_path))[0]
    counted = Counter(tiny(), tiny_processor(), None, Solution).count(sample, whole=True)
    fits, tight = (Counter(tiny(), tiny_processor(), counted.num_tokens + n, Solution, room=6) for n in (6, 5))
    fits.refuse(sample, whole=True)
    assert (fits.exceeded(sample, counted), tight.exceeded(sample, counted)) == (0, TOO_LONG)
    with pytest.raises(DataError, match=r"and 6 of a completion \(trainer.max_new_tokens\), exceed"):
        tight.refuse(sample, whole=True)
