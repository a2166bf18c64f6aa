"""What a model said of held-out samples, and the file that keeps it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vlmft.errors import StorageError


@dataclass(frozen=True, slots=True)
class Answer:
    """One held-out sample with what the model said."""

    id: str
    question: str
    reference: str
    prediction: str
    scores: dict[str, float]
    probabilities: dict[str, float] = field(default_factory=dict)
    """Of each class, where the model was asked for one."""


def write_answers(path: Path, answers: Sequence[Answer]) -> None:
    """Write answers as JSONL, one a line. Raises `StorageError` where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as stream:
            for answer in answers:
                said = {name: value for name, value in asdict(answer).items() if value != {} or name == "scores"}
                stream.write(json.dumps(said, ensure_ascii=False) + "\n")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def read_answers(path: Path) -> list[Answer]:
    """Read what `write_answers` wrote."""
    with path.open(encoding="utf-8") as stream:
        return [Answer(**json.loads(line)) for line in stream]
