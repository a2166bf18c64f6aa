"""Keys and choices of `annotator=openai`."""

from pathlib import Path
from typing import Any

import pytest

from tests.annotation.conftest import Typed
from tests.annotation.making import CAPTION, Reply, serving, words

KEY = "canary-3f7a1d-key"


@pytest.mark.parametrize("status", [200, 400, 401, 429, 500])
def test_the_key_goes_to_the_server_and_nowhere_else(
    typed: Typed, images: Path, monkeypatch: pytest.MonkeyPatch, status: int, tmp_path: Path
) -> None:
    """Even where the server repeats it, whatever it answers."""
    monkeypatch.setenv("MY_KEY", KEY)
    content: Any = CAPTION | {"caption": f"Bearer {KEY}"} if status == 200 else f"Incorrect key: {KEY}"
    with serving(lambda asked: Reply(content, status)) as server:
        code, out, err = typed(*words(server, "annotator.api_key_env=MY_KEY", "annotator.attempts=2"))
        assert {asked.headers["Authorization"] for asked in server.asked} == {f"Bearer {KEY}"}
    assert code == 2
    assert (f"{status}: Incorrect key: ***" if status != 200 else "the answer repeats the API key") in err
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".png"]
    assert written and KEY not in out + err + "".join(path.read_text() for path in written)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "MY_KEY",
            None,
            "annotator.api_key_env: the variable that it names is not set in the environment; give the name",
        ),
        (
            "MY_KEY",
            " ",
            "annotator.api_key_env: the variable that it names is not set in the environment; give the name",
        ),
        ("MY_KEY", f"{KEY}\n{KEY}", "annotator.api_key_env: the variable holds characters that cannot stand in a key"),
        ("MY_KEY", f"{KEY}é", "annotator.api_key_env: the variable holds characters that cannot stand in a key"),
        (KEY, None, "annotator.api_key_env: the variable that it names is not set in the environment; give the name"),
    ],
)
def test_a_key_that_is_not_there(
    typed: Typed, images: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str | None, said: str
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv(name, value)
    with serving([]) as server:
        code, out, err = typed(*words(server, f"annotator.api_key_env={name}"))
    assert (code, server.asked) == (2, []) and err.startswith(f"error: {said}")
    assert KEY not in out + err


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            f"annotator.base_url=https://me:{KEY}@host/v1",
            "annotator: base_url should be http:// or https:// with a host",
        ),
        (
            f"annotator.base_url='https://host/v1?key={KEY}'",
            "annotator: base_url should be http:// or https:// with a ",
        ),
        ("annotator.base_url=host:8000", "annotator: base_url should be http:// or https:// with a host and a path, "),
        ("+annotator.options.model=x", "annotator: options may not hold model: the command fills it in"),
        ("annotator.answers=0", "annotator.answers: Input should be greater than or equal to 1 (found 0)"),
        ("templates=t.yaml", "templates: a model is asked for captions; leave it out, or choose annotator=none"),
        ("out=data/metadata.json", "out=data/metadata.json: captions should go to a .jsonl file"),
    ],
)
def test_bad_choices(typed: Typed, images: Path, word: str, said: str) -> None:
    with serving([]) as server:
        code, out, err = typed(*words(server, word))
    assert code == 2 and said in err, err
    assert KEY not in out + err


def test_what_has_to_be_said(typed: Typed, images: Path) -> None:
    code, _, err = typed("media_dir=data/images", "out=data/metadata.jsonl", "annotator=openai")
    assert code == 2 and err.splitlines() == [
        "error: annotator.base_url: a value is required (annotator.base_url=...)",
        "error: annotator.model: a value is required (annotator.model=...)",
    ]
