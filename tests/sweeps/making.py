"""Run folders as runs leave them, written in a moment."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmft.run_folder import RunFolder


def write_run(
    path: Path,
    losses: Sequence[float] = (),
    score: float | None = None,
    code: int = 0,
    reason: str = "done",
    **more: Any,
) -> Path:
    """A run that has ended with `code`; `score` is its tuned exact_match."""
    folder = RunFolder.create(path, "seed: 0\n")
    folder.start()
    with folder.open_metrics() as metrics:
        for step, loss in enumerate(losses, start=1):
            metrics.append({"step": step, "time": 0.0, "loss": loss})
        if score is not None:
            metrics.append({"step": len(losses), "eval/exact_match": score})
    fields: dict[str, Any] = {"steps": len(losses), "train": {"loss": losses[-1]} if losses else {}}
    if score is not None:
        fields["eval"] = {
            "base": {"exact_match": 0.1},
            "tuned": {"exact_match": score},
            "intervals": {"base": {"exact_match": [0.0, 0.2]}, "tuned": {"exact_match": [score - 0.1, score + 0.1]}},
        }
    folder.finish(code, reason, **(fields if code == 0 else {}), **more)
    return path


def write_lines(path: Path, *lines: dict[str, Any] | str) -> None:
    """Lines of a metrics.jsonl as they stand."""
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
