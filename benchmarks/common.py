"""What the benchmarks share: spreads, the record of machine and versions, result files and tables.

A result file, benchmarks/results/<name>.json, holds the figures, the bound they are held to, and what is needed to
make them again: the command, the date, the commit, the processor, the load and the versions. It holds no host name,
no user name and no path.
"""

import json
import os
import platform
import shutil
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vlmft.run_folder import RunFolder

RESULTS = Path(__file__).parent / "results"
MID_SIZE = {"hidden_size": 640, "intermediate_size": 2560, "num_hidden_layers": 10, "num_attention_heads": 10}
"""The LLM of the mid-size model; its tower stays tiny."""


@dataclass(frozen=True)
class Spread:
    """Many measurements of one thing, in the unit they were measured in."""

    median: float
    p10: float
    p90: float
    mean: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarise at least two values."""
        deciles = statistics.quantiles(values, n=10, method="inclusive")
        return cls(statistics.median(values), deciles[0], deciles[-1], statistics.fmean(values), len(values))

    def cells(self) -> tuple[str, str, str]:
        """Median, p10 to p90, and mean, as a table shows them."""
        return f"{self.median:.2f}", f"{self.p10:.2f} to {self.p90:.2f}", f"{self.mean:.2f}"


def provenance() -> dict[str, Any]:
    """Say when, on what and with what a figure was made."""
    with tempfile.TemporaryDirectory() as folder:
        RunFolder(Path(folder)).write_environment()  # the same record that every run keeps
        environment = json.loads((Path(folder) / "environment.json").read_text())
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": environment["git"],
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "python": environment["python"],
        "packages": {name: version for name, version in environment["packages"].items() if version},
    }


def write_result(name: str, figures: dict[str, Any], made: dict[str, Any]) -> None:
    """Write benchmarks/results/<name>.json: the figures, spreads included, and how they were `made`."""
    RESULTS.mkdir(exist_ok=True)
    plain = json.dumps(_plain(figures | {"made": made}), indent=2, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(plain + "\n")


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], notes: Sequence[str]) -> None:
    """Print a table, its first column to the left and the others to the right, and lines below it."""
    console = Console(highlight=False)
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for note in notes:
        console.print(note)


def make_mid_size(folder: Path, tower: Mapping[str, int] | None = None) -> Path:
    """Write a random checkpoint of the tiny one's classes with a larger LLM.

    Args:
        tower: values of the vision tower's config, where it is not to stay tiny.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.utils import logging

    logging.disable_progress_bar()
    shutil.copytree(composed().model.folder(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = AutoConfig.from_pretrained(folder)
    text = config.text_config
    for name, value in MID_SIZE.items():
        setattr(text, name, value)
    for name, value in (tower or {}).items():
        setattr(config.vision_config, name, value)
    text.num_key_value_heads = text.num_attention_heads
    text.layer_types = None
    text.max_window_layers = text.num_hidden_layers
    head = text.hidden_size // text.num_attention_heads // 2
    sections = {"mrope_section": [head - 2 * (head // 3), head // 3, head // 3]}
    text.rope_parameters = dict(text.rope_parameters) | sections
    config.vision_config.out_hidden_size = text.hidden_size
    torch.manual_seed(0)
    values = config.to_dict()
    values["text_config"].pop("layer_types", None)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**values), dtype=torch.float32)
    model.save_pretrained(folder)
    return folder


def composed(*words: str) -> Any:
    """The checked config of `python -m vlmft.train *words`."""
    from vlmft.config.app import run_app
    from vlmft.train import TrainConfig

    found: list[Any] = []

    def keep(config: TrainConfig, composition: Any) -> int:
        found.append(config)
        return 0

    if run_app("train", TrainConfig, keep, argv=list(words)):
        raise RuntimeError(f"{words} cannot be composed")
    return found[0]


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _plain(value: Any) -> Any:
    if isinstance(value, Spread):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value
