"""What the tests of `vlmft.checking` share: a checked config over files of their own, and a scan of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmft.checking.examine import Problem
from vlmft.checking.scan import Scan
from vlmft.config.app import run_app
from vlmft.data.run_data import RunData, open_run_data
from vlmft.validate import ValidateConfig


def entry(root: Path, name: str, **fields: Any) -> None:
    """Write a dataset entry to a user root."""
    values = {"_target_": "vlmft.data.LLaVADataset"} | fields
    path = root / "registry/datasets" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([f"{name}:", *(f"  {key}: {json.dumps(value)}" for key, value in values.items())]) + "\n")


def write_rows(root: Path, rows: Sequence[Any], name: str = "mine", **fields: Any) -> Path:
    """Write rows as the dataset `name`, whose media lie in <root>/media; return the JSON Lines file."""
    path = root / "media" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry(root, name, data_path=f"media/{name}.jsonl", **fields)
    return path


def composed(*words: str) -> ValidateConfig:
    """The checked config of `python -m vlmft.validate *words`."""
    found: list[ValidateConfig] = []
    assert run_app("validate", ValidateConfig, lambda config, _: found.append(config) or 0, argv=words) == 0
    return found[0]


def opened(config: ValidateConfig) -> RunData:
    return open_run_data(config.dataset, config.eval_dataset, config.holdout, config.seed, config.mixing_temperature)


def scanned(*words: str) -> tuple[Scan, list[Problem]]:
    """A scan that has been run, and what it found."""
    config = composed(*words)
    scan = Scan(config, opened(config))
    problems = scan.overlap()
    last = 0
    for done, found in scan.run():
        assert done > last
        last = done
        problems += found
    assert last == scan.num_samples
    return scan, problems
