"""What a server may answer instead of an answer."""

import json
import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from tests.annotation.conftest import Run
from tests.annotation.making import CAPTION, OK, Asked, Reply, counts, lines, problems, row, serving


def waits(run: Run, first: Reply, **changes: Any) -> list[float]:
    """The seconds between the requests about one picture, whose first is answered so."""
    with serving([first, OK]) as server:
        code, _, errors = run(server, media_dir="data/one", **changes)
        assert (code, errors) == (0, [])
        return [after - before for before, after in zip(server.times, server.times[1:], strict=False)]


@pytest.mark.parametrize("first", [Reply("slow down", 429), Reply("oh", 500), Reply("", 503), Reply(raw=b"<html>")])
def test_a_server_that_cannot_answer_is_asked_again_after_a_while(run: Run, one: Path, first: Reply) -> None:
    (wait,) = waits(run, first, backoff_s=0.2)
    assert 0.2 <= wait < 10


def test_the_wait_is_what_the_server_asks_for(run: Run, one: Path) -> None:
    (wait,) = waits(run, Reply("", 429, {"Retry-After": "0.3"}))
    assert 0.3 <= wait < 10


def test_the_wait_may_be_a_date(run: Run, one: Path) -> None:
    def answer(asked: Asked) -> Reply:
        when = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)  # whole seconds: 1 to 2
        return Reply("", 503, {"Retry-After": when}) if len(server.asked) == 1 else OK

    with serving(answer) as server:
        assert run(server, media_dir="data/one")[0] == 0
        first, second = server.times
    assert 0.9 < second - first < 10


def test_a_wait_that_is_too_long_is_not_waited_for(run: Run, one: Path) -> None:
    with serving([Reply("quota", 429, {"Retry-After": "3600"})]) as server:
        code, _, errors = run(server, media_dir="data/one")
    said = "one/0.png: 429: quota; the server asks to wait 3600 s, more than annotator.max_wait_s=60"
    assert (code, errors) == (2, [said])


def test_the_wait_doubles_and_ends(run: Run, one: Path) -> None:
    with serving(lambda asked: Reply("overloaded", 529)) as server:
        code, out, errors = run(server, media_dir="data/one", attempts=4, backoff_s=0.1)
        gaps = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    assert code == 2 and counts(out) == [0, 0, 1, 0]
    assert errors == ["one/0.png: 529: overloaded (4 attempts)"]
    assert len(gaps) == 3 and all(gap >= least for gap, least in zip(gaps, (0.1, 0.2, 0.4), strict=True))
    assert problems() == [{"image": "one/0.png", "problem": "529: overloaded (4 attempts)", "answer": None}]
    assert not Path("data/metadata.jsonl").exists()  # nothing to keep


def test_a_request_that_takes_too_long(run: Run, images: Path) -> None:
    def answer(asked: Asked) -> Reply:
        return Reply(CAPTION, delay_s=5.0 if asked.grey == 100 else 0)

    with serving(answer) as server:
        code, out, errors = run(server, timeout_s=1.0, attempts=1)
    assert (code, errors) == (2, ["images/2.png: no answer within 1 s"])
    assert counts(out) == [0, 3, 1, 0] and lines() == [row(number) for number in (0, 1, 3)]


def test_no_server(run: Run, images: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with serving([]) as server:
            code, out, errors = run(server, base_url=url, attempts=2, concurrency=1, give_up_after=2)
    assert code == 2 and counts(out) == [0, 0, 2, 2]
    assert errors == [
        "images/0.png: ConnectError: All connection attempts failed (2 attempts)",
        "images/1.png: ConnectError: All connection attempts failed (2 attempts)",
        "2 media were not asked about, as 2 in a row had no answer (annotator.give_up_after=2); "
        "the same command goes on",
    ]


@pytest.mark.parametrize(
    ("status", "mend"),
    [
        (401, "annotator.api_key_env"),
        (404, "annotator.base_url or annotator.model"),
        (307, "annotator.base_url (redirects are not followed)"),
    ],
)
def test_what_no_medium_would_get_past_ends_the_command(run: Run, images: Path, status: int, mend: str) -> None:
    with serving(lambda asked: Reply("no such thing", status)) as server:
        code, _, errors = run(server, concurrency=1)
        assert len(server.asked) == 1
    said = f"{server.base_url}/chat/completions answers {status}: no such thing; mend {mend}"
    assert (code, errors) == (2, [said])


def test_a_request_that_is_refused_is_not_made_again(run: Run, images: Path) -> None:
    def answer(asked: Asked) -> Reply:
        return Reply("content\n policy " + "x" * 400, 400) if asked.grey == 0 else OK

    with serving(answer) as server:
        code, out, errors = run(server)
        assert len(server.asked) == 4
    assert (code, counts(out)) == (2, [0, 3, 1, 0])
    assert errors == [f"images/0.png: 400: content policy {'x' * 285}..."]


@pytest.mark.parametrize("raw", [b"{}", b'{"choices": []}', b'{"choices": [{"message": {}}]}', b"[]", b'"x"'])
def test_an_answer_of_another_form(run: Run, one: Path, raw: bytes) -> None:
    with serving([Reply(raw=raw)]) as server:
        code, _, errors = run(server, media_dir="data/one")
    assert code == 2 and errors[0].startswith("one/0.png: no choices[0].message.content in the answer: ")


def test_a_refusal(run: Run, one: Path) -> None:
    raw = json.dumps({"choices": [{"message": {"content": None, "refusal": "I cannot."}}]}).encode()
    with serving([Reply(raw=raw)]) as server:
        code, _, errors = run(server, media_dir="data/one")
    said = 'the model said nothing: {"content": null, "refusal": "I cannot."}'
    assert (code, errors) == (2, [f"one/0.png: {said}"])
