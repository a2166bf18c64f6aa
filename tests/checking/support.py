"""What the tests of `vlmft.checking` share: rows on disk, and a scan of them without the command line (0.3 s each)."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from vlmft.checking.examine import Problem
from vlmft.checking.scan import Scan
from vlmft.config.app import run_app
from vlmft.data import DatasetSpec, LLaVADataset
from vlmft.data.run_data import RunData, open_run_data
from vlmft.validate import ValidateConfig


def write_rows(root: Path, rows: Sequence[Any], name: str = "mine", **fields: Any) -> LLaVADataset:
    """Write rows as a JSON Lines file whose media lie beside it, and an entry of a user root that names it."""
    path = root / "media" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"_target_": "vlmft.data.LLaVADataset", "data_path": f"media/{name}.jsonl"} | fields
    registry = root / "registry/datasets"
    registry.mkdir(parents=True, exist_ok=True)
    lines = [f"{name}:", *(f"  {key}: {json.dumps(value)}" for key, value in values.items())]
    (registry / f"{name}.yaml").write_text("\n".join(lines) + "\n")
    return LLaVADataset(data_path=path, **fields)


@cache
def _default() -> ValidateConfig:
    found: list[ValidateConfig] = []
    assert run_app("validate", ValidateConfig, lambda config, _: found.append(config) or 0, argv=["num_workers=2"]) == 0
    return found[0]


def config_of(
    dataset: Mapping[str, DatasetSpec], eval_dataset: Mapping[str, DatasetSpec] | None = None, **changes: Any
) -> ValidateConfig:
    """The default config with these entries. `max_tokens` is that of `batching`, `max_samples` of `evaluation`."""
    config = _default()
    for group, name in (("batching", "max_tokens"), ("evaluation", "max_samples")):
        if name in changes:
            changes[group] = getattr(config, group).model_copy(update={name: changes.pop(name)})
    entries = {"dataset": dict(dataset), "eval_dataset": dict(eval_dataset or {})}
    return config.model_copy(update=entries | changes)


def opened(config: ValidateConfig) -> RunData:
    return open_run_data(config.dataset, config.eval_dataset, config.holdout, config.seed, config.mixing_temperature)


def scanned(config: ValidateConfig) -> tuple[Scan, list[Problem]]:
    """A scan that has been run, and what it found."""
    scan = Scan(config, opened(config))
    problems = scan.overlap()
    last = 0
    for done, found in scan.run():
        assert done > last
        last = done
        problems += found
    assert last == scan.num_samples
    return scan, problems
