"""Rated answers on disk, and a trainer on them."""

import json
from pathlib import Path
from typing import Any

from tests.training.pairs import TaskBench, task_bench, write_pairs
from vlmft.data import UnpairedDataset


def write_rated(folder: Path, video: bool = True, text: bool = True) -> Path:
    """The samples of `write_pairs`, of each one answer: the chosen one, good, or the rejected one, bad, in turns."""
    rows = json.loads(write_pairs(folder, video, text).read_text())
    for number, row in enumerate(rows):
        answers = row.pop("chosen"), row.pop("rejected")
        row |= {"completion": answers[number % 2], "label": number % 2 == 0}
    path = folder / "rated.json"
    path.write_text(json.dumps(rows))
    return path


def rated_bench(folder: Path, file: Path, *words: str, **replaces: Any) -> TaskBench:
    """A bench of `python -m vlmft.train trainer=kto *words` on the answers of `file`, whose run folder is `folder`."""
    source = UnpairedDataset(data_path=file, frames_fps=2.0).open("mine")
    return task_bench(folder, source, "trainer=kto", *words, **replaces)
