import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.data.making import save_picture
from vlmft.data import LLaVADataset
from vlmft.data.sources.rows import RowSource


@pytest.fixture(autouse=True)
def _cache_in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A folder that holds a.png, b.png and c.png."""
    for name in "abc":
        save_picture(tmp_path / "media" / f"{name}.png")
    return tmp_path / "media"


@pytest.fixture
def dataset(media: Path) -> Callable[..., RowSource]:
    """Write rows as a LLaVA file beside the pictures and open it under an entry's name."""

    def make(rows: Any, name: str = "mine", **keys: Any) -> RowSource:
        path = media / f"{name}.json"
        path.write_text(json.dumps(rows))
        return LLaVADataset(data_path=path, **keys).open(name)

    return make
