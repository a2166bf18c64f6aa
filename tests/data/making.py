"""Small files for the data layer's tests."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from vlmft.types import Message, Sample


def qa(question: str = "What is it?", answer: str = "A kite.", **keys: Any) -> dict[str, Any]:
    """One LLaVA row with one question."""
    return keys | {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def turns(*spoken: tuple[str, Any], **keys: Any) -> dict[str, Any]:
    """One LLaVA row with the turns (from, value)."""
    return keys | {"conversations": [{"from": speaker, "value": value} for speaker, value in spoken]}


def save_picture(path: Path, size: tuple[int, int] = (8, 6), colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


class Listed:
    """A source of text samples with the ids it is given, for tests of order and shares."""

    shards: list[int] | None = None
    shuffle_window = 8192

    def __init__(self, ids: list[str], name: str = "mine", data_file: str = "/data/mine.json") -> None:
        self.ids, self.name, self.data_file = ids, name, Path(data_file)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> Sample:
        return Sample(self.sample_id(row), (Message("user", ("Q",)), Message("assistant", (self.ids[row],))))

    def sample_id(self, row: int) -> str:
        return f"{self.name}/{self.ids[row]}"

    def check_row(self, row: int) -> None:
        pass

    def content_key(self, row: int) -> bytes:
        return self.ids[row].encode()

    def fingerprint(self) -> dict[str, str | int]:
        return {"sha256": "", "rows": len(self)}


def numbered(n: int, name: str = "mine") -> Listed:
    return Listed([f"{i:05d}" for i in range(n)], name)


def in_new_process(code: str, **environment: str) -> Any:
    """Run `code` in another Python and return what its last line prints as JSON."""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])
