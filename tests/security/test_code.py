"""A checkpoint's own Python files are not run, and nobody is asked whether they should be."""

import builtins
import shutil
import sys
from pathlib import Path

import pytest

from tests.security.canary import write_code_canary
from tests.support import CPU, literally, tiny
from vlmft.errors import ConfigError
from vlmft.models import Qwen25VL


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.fixture
def repository(tmp_path: Path, marker: Path) -> Path:
    """The tiny checkpoint, turned into one that brings its own code."""
    folder = Path(shutil.copytree(tiny().folder(), tmp_path / "repository"))
    write_code_canary(folder, marker)
    return folder


def spec(folder: Path) -> Qwen25VL:
    return Qwen25VL(**(dict(tiny()) | {"path": str(folder)}))


@pytest.mark.parametrize("what", ["model", "processor"])
def test_a_checkpoint_that_needs_its_own_code_is_refused(repository: Path, marker: Path, what: str) -> None:
    message = f"model.path: {repository} needs Python code of its own (auto_map in its JSON files), which is never run"
    with pytest.raises(ConfigError, match=literally(message)):
        if what == "model":
            spec(repository).load_model(CPU)
        else:
            spec(repository).load_processor()
    assert not marker.exists()


def test_own_code_beside_a_known_class_is_not_run(repository: Path, marker: Path) -> None:
    for name in ("config.json", "processor_config.json"):
        (repository / name).unlink()
    shutil.copytree(tiny().folder(), repository, dirs_exist_ok=True)
    known = (repository / "config.json").read_text().rstrip()[:-1]
    (repository / "config.json").write_text(known + ', "auto_map": {"AutoConfig": "canary_code.Canary"}}')
    spec(repository).load_model(CPU)
    spec(repository).load_processor()
    assert not marker.exists()


def test_nobody_is_asked_on_a_terminal(repository: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(builtins, "input", lambda prompt="": asked.append(prompt) or "y")
    for read in (spec(repository).load_processor, lambda: spec(repository).load_model(CPU)):
        with pytest.raises(ConfigError):
            read()
    assert asked == []
    assert not marker.exists()
