"""`python -m vlmft.annotate` in this process, and something to annotate."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.annotation.making import DASHCAM, Server, save_picture
from vlmft.annotate import AnnotateConfig, annotate
from vlmft.annotation import OpenAI
from vlmft.config.app import Composition, run_app
from vlmft.errors import VlmftError

Typed = Callable[..., tuple[int, str, str]]
Run = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in. No proxy stands between it and a server."""
    monkeypatch.chdir(tmp_path)
    for name in ("VLMFT_PATH", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def typed(folder: Path, capsys: pytest.CaptureFixture[str]) -> Typed:
    """`python -m vlmft.annotate *words`: code, stdout, stderr."""

    def type_(*words: str) -> tuple[int, str, str]:
        code = run_app("annotate", AnnotateConfig, annotate, argv=words)
        return code, *capsys.readouterr()

    return type_


@cache
def composed() -> tuple[AnnotateConfig, Composition]:
    """The command that asks a model, from the project's own conf/."""
    found: list[tuple[AnnotateConfig, Composition]] = []
    words = ("media_dir=data/images", "out=data/metadata.jsonl", f"schema={DASHCAM}", "annotator=openai")
    words += ("annotator.base_url=http://localhost", "annotator.model=large", "annotator.backoff_s=0.01")
    assert run_app("annotate", AnnotateConfig, lambda *both: found.append(both) or 0, argv=words) == 0  # type: ignore
    return found[0]


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """The same without composing anew: `run(server, media_dir=..., timeout_s=...)`; code, stdout, problems."""

    def run_(server: Server, **changes: Any) -> tuple[int, str, list[str]]:
        config, composition = composed()
        own = {name: changes.pop(name) for name in ("media_dir", "schema") if name in changes}
        asking = OpenAI(**(dict(config.annotator) | {"base_url": server.base_url} | changes))
        values = {"schema": DASHCAM, "media_dir": config.media_dir} | own
        config = AnnotateConfig(annotator=asking, out=config.out, templates=None, append=False, **values)
        try:
            code, problems = annotate(config, composition), []
        except VlmftError as error:
            code, problems = error.exit_code, list(error.problems)
        return code, capsys.readouterr().out, problems

    return run_


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four pictures, each with a shade of its own: 0.png is 0, 1.png is 50, ..."""
    for number in range(4):
        save_picture(tmp_path / f"data/images/{number}.png", 50 * number)
    return tmp_path / "data/images"


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """A single picture."""
    return save_picture(tmp_path / "data/one/0.png")
