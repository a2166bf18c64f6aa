from pathlib import Path

import pytest


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user root; whatever is typed is typed in an empty folder beside it."""
    (tmp_path / "my/registry/datasets").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("VLMFT_PATH", str(tmp_path / "my"))
    return tmp_path / "my"
