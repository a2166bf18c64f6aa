"""`annotator=openai`, against a server of this process."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.annotation.conftest import Run
from tests.annotation.making import (
    CAPTION,
    DASHCAM,
    OK,
    Reply,
    counts,
    lines,
    problems,
    row,
    save_picture,
    save_video,
    serving,
)
from vlmft.data.sources.caption_schema import read_schema


def test_captions_stand_beside_the_media_as_training_reads_them(run: Run, images: Path) -> None:
    shuffled = dict(reversed(CAPTION.items()))
    with serving(lambda asked: Reply(shuffled, delay_s=0.02 * (4 - asked.grey // 50))) as server:
        code, out, errors = run(server)
    assert (code, errors) == (0, [])
    assert lines() == [row(number) for number in range(4)]
    assert [list(line) for line in lines()] == [["image", *CAPTION]] * 4  # in the schema's order
    assert Path("data/schema.json").read_bytes() == DASHCAM.read_bytes()
    assert sorted(path.name for path in Path("data").iterdir()) == [
        "images",
        "metadata.jsonl",
        "schema.json",
    ]
    assert counts(out) == [0, 4, 0, 0]
    assert "tokens    400 of prompts, 28 of answers" in out and f"paths     start from {Path('data').absolute()}" in out


def test_what_is_asked(run: Run, images: Path) -> None:
    save_picture(images / "large.png", 77, (3000, 1500))
    with serving(lambda asked: OK) as server:
        run(server, options={"temperature": 0, "seed": 3}, prompt="Look.")
        (asked,) = [asked for asked in server.asked if abs(asked.grey - 77) < 3]
    schema = json.loads(DASHCAM.read_text())
    assert asked.path == "/v1/chat/completions" and "Authorization" not in asked.headers
    assert asked.pictures[0].size == (1024, 512)
    assert asked.text == (
        "Look.\n\nAnswer with one JSON object and nothing else. Its fields, in this order:\n"
        + read_schema(DASHCAM).fields()
    )
    assert {name: value for name, value in asked.body.items() if name != "messages"} == {
        "model": "large",
        "temperature": 0,
        "seed": 3,
        "response_format": {"type": "json_schema", "json_schema": {"name": "caption", "schema": schema}},
    }
    assert {asked.pictures[0].size for asked in server.asked} == {(40, 30), (1024, 512)}  # none is enlarged


@pytest.mark.parametrize(("form", "sent"), [("json_object", {"type": "json_object"}), ("none", None)])
def test_a_server_without_schemas(run: Run, images: Path, form: str, sent: Any) -> None:
    with serving(lambda asked: Reply(f"```json\n{json.dumps(CAPTION)}\n```\n")) as server:
        assert run(server, response_format=form)[0] == 0
        assert [asked.body.get("response_format") for asked in server.asked] == [sent] * 4
    assert lines() == [row(number) for number in range(4)]


def test_without_a_schema_the_whole_answer_is_the_caption(run: Run, images: Path) -> None:
    with serving(lambda asked: Reply(" A grey\nsquare. ")) as server:
        assert run(server, schema=None)[0] == 0
        assert "response_format" not in server.asked[0].body and "JSON" not in server.asked[0].text
    assert lines()[0] == {"image": "images/0.png", "caption": "A grey\nsquare."}
    assert not Path("data/schema.json").exists()


def test_a_video_is_its_frames(run: Run, tmp_path: Path) -> None:
    save_video(tmp_path / "data/videos/a.mp4", 20, size=(96, 48))
    with serving(lambda asked: OK) as server:
        assert run(server, media_dir="data/videos", num_frames=4, max_side=48)[0] == 0
        (asked,) = server.asked
    assert [picture.size for picture in asked.pictures] == [(48, 24)] * 4
    frames = [np.asarray(picture).astype(int) for picture in asked.pictures]
    assert all(abs(a - b).mean() > 10 for a, b in zip(frames, frames[1:], strict=False))
    assert asked.text.startswith("The pictures are frames of one video, in order.\n\nDescribe ")
    assert lines() == [{"video": "videos/a.mp4", **CAPTION}]


def test_no_more_requests_at_a_time_than_allowed(run: Run, images: Path) -> None:
    with serving(lambda asked: Reply(CAPTION, delay_s=0.3)) as server:
        assert run(server, concurrency=2)[0] == 0
        assert server.most_at_once == 2


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (Reply("It is a van."), "it is no JSON: Expecting value: line 1 column 1 (char 0)"),
        (Reply([CAPTION]), "it is JSON, but no object"),
        (Reply('{"caption": NaN}'), "it is no JSON: NaN is no JSON number"),
        (
            Reply(CAPTION | {"event_type": "crash"}),
            'its \'event_type\' is \'crash\'; expected one of "collision", "near_miss", "no_incident"',
        ),
        (
            Reply({name: value for name, value in CAPTION.items() if name != "visibility"} | {"visible": "good"}),
            "it has no 'visibility'; expected one of \"good\", \"bad\"; it has the key 'visible', which the schema "
            "does not name; did you mean visibility?",
        ),
        (
            Reply(CAPTION | {"rule_violations": ["littering"]}),
            "its 'rule_violations[0]' is 'littering'; expected one of \"speeding\", \"failure_to_yield\", "
            '"ignoring_traffic_signs"',
        ),
        (
            Reply(CAPTION, finish_reason="length"),
            "it was cut at the most tokens that it may have (annotator.options.max_tokens)",
        ),
        (
            Reply(CAPTION | {"caption": "[ANNOTATE: this]"}),
            "it holds [ANNOTATE, the mark of an answer that is missing",
        ),
        (Reply(json.dumps(CAPTION | {"caption": "\ud800"})), "it holds half a character, which no file can hold"),
    ],
)
def test_an_answer_that_breaks_the_schema_is_asked_for_again(run: Run, one: Path, bad: Reply, problem: str) -> None:
    with serving([bad, OK]) as server:
        assert run(server, media_dir="data/one")[0] == 0
        question, answer, correction = server.asked[1].body["messages"]
        assert question == server.asked[0].body["messages"][0]
        assert answer == {"role": "assistant", "content": json.loads(bad.encoded())["choices"][0]["message"]["content"]}
        assert correction["content"] == f"That cannot be used: {problem}. Answer once more, in full."
    assert lines() == [{"image": "one/0.png", **CAPTION}]
    with serving([bad, bad]) as server:
        Path("data/metadata.jsonl").unlink()
        code, _, errors = run(server, media_dir="data/one", answers=2)
        assert len(server.asked) == 2
    assert (code, errors) == (2, [f"one/0.png: {problem} (2 answers)"])
    (listed,) = problems()
    assert listed["problem"] == f"{problem} (2 answers)" and listed["answer"] == answer["content"]


def test_an_answer_that_no_file_can_hold_is_listed_all_the_same(run: Run, one: Path) -> None:
    raw = b'{"choices": [{"message": {"content": "half \\ud800"}}]}'
    with serving([Reply(raw=raw)]) as server:
        code, _, errors = run(server, media_dir="data/one", schema=None, answers=1)
    said = "it holds half a character, which no file can hold"
    assert (code, errors) == (2, [f"one/0.png: {said}"])
    assert problems() == [{"image": "one/0.png", "problem": said, "answer": "half \ud800"}]


def test_a_damaged_file_is_listed_and_the_rest_goes_on(run: Run, images: Path) -> None:
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:60])
    with serving(lambda asked: OK) as server:
        code, out, errors = run(server, give_up_after=1)
        assert len(server.asked) == 3
    assert (code, counts(out)) == (2, [0, 3, 1, 0])
    assert errors[0].startswith(f"images/1.png: {images}/1.png cannot be decoded: ")
    assert [line["image"] for line in lines()] == ["images/0.png", "images/2.png", "images/3.png"]


def test_many_problems_are_shown_in_part_and_listed_in_full(run: Run, images: Path) -> None:
    for number in range(4, 9):
        save_picture(images / f"{number}.png")
    with serving(lambda asked: Reply("no", 400)) as server:
        code, out, errors = run(server, concurrency=1)
    *shown, last = errors
    assert shown == [f"images/{number}.png: 400: no" for number in range(5)]
    assert last == f"4 more media have no answer; {Path.cwd()}/data/metadata.jsonl.problems.jsonl lists them"
    assert len(problems()) == 9 and "problems  " in out


def test_the_same_command_asks_only_what_is_missing(run: Run, images: Path) -> None:
    with serving(lambda asked: OK if asked.grey in (50, 150) else Reply("no", 400)) as server:
        assert run(server)[0] == 2
    assert [line["image"] for line in problems()] != []
    kept = lines()
    with serving(lambda asked: Reply(CAPTION | {"visibility": "bad"})) as server:
        code, out, errors = run(server)
        assert sorted(asked.grey for asked in server.asked) == [0, 100]
    assert (code, errors, counts(out)) == (0, [], [2, 2, 0, 0])
    assert kept == [row(1), row(3)]
    assert lines() == [row(0, visibility="bad"), row(1), row(2, visibility="bad"), row(3)]
    assert not Path("data/metadata.jsonl.problems.jsonl").exists()
    with serving([]) as server:
        code, out, _ = run(server)
    assert (code, counts(out), server.asked) == (0, [4, 0, 0, 0], [])


def test_a_line_that_a_killed_command_left_half_is_asked_for_again(run: Run, images: Path) -> None:
    whole = json.dumps(row(0)) + "\n"
    Path("data/metadata.jsonl").write_text(whole + '{"image": "images/1.png", "capt')
    with serving(lambda asked: OK) as server:
        code, out, _ = run(server)
    assert code == 0 and counts(out) == [1, 3, 0, 0]
    assert "metadata.jsonl: its last line was cut short (31 bytes), and is gone" in out
    assert lines() == [row(number) for number in range(4)]


def test_other_rows_than_such_captions_are_not_added_to(run: Run, images: Path) -> None:
    out = Path("data/metadata.jsonl")
    out.write_text(f"{json.dumps(row(0))}\n{json.dumps(row(1, visibility='foggy'))}\n{json.dumps({'image': 'x'})}\n")
    before = out.read_bytes()
    with serving([]) as server:
        code, _, errors = run(server)
    first, second = errors
    assert code == 2 and out.read_bytes() == before
    assert first == (
        f"{out.absolute()}:2: its 'visibility' is 'foggy'; expected one of \"good\", \"bad\"; mend or remove the line, "
        "or choose another out"
    )
    assert second.startswith(f"{out.absolute()}:3: it has no 'caption'; expected text; ")
    out.write_text(json.dumps(row(0, caption="[ANNOTATE: what happens]")) + "\n")
    with serving([]) as server:
        code, _, errors = run(server)
    assert code == 2 and "metadata.jsonl:1: the caption is still to be filled in: [ANNOTATE: what happens]" in errors[0]


def test_another_schema_than_that_of_the_captions_there(run: Run, images: Path) -> None:
    with serving(lambda asked: OK) as server:
        assert run(server)[0] == 0
        other = json.loads(DASHCAM.read_text())
        other["properties"]["caption"]["minLength"] = 2
        Path("other.json").write_text(json.dumps(other))
        code, _, errors = run(server, schema="other.json")
    kept = Path("data/schema.json").absolute()
    said = (
        f"schema: differs from {kept}, which is that of the captions in {kept.with_name('metadata.jsonl')}; give that "
        "one, or put out into another folder"
    )
    assert (code, errors) == (2, [said])
