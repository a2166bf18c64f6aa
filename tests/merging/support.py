"""The two steps of a merge, carried out in this process."""

import logging
import warnings
from pathlib import Path
from typing import Any

import yaml

from tests.support import PROJECT
from vlmft.config.spec import validate
from vlmft.merge import MergeConfig
from vlmft.merging.check import check
from vlmft.merging.exchange import Exchange
from vlmft.merging.write import write


def request(run: Path, out: Path, **changes: Any) -> MergeConfig:
    """What `python -m vlmft.merge run=... out=...` would compose."""
    values = yaml.safe_load((PROJECT / "conf/merge.yaml").read_text())
    del values["defaults"], values["hydra"]
    return validate(MergeConfig, values | {"run": str(run), "out": str(out), "max_new_tokens": 6} | changes)


def exchange(folder: Path, run: Path, **changes: Any) -> Exchange:
    """The folder between the two steps, and `merged` beside it."""
    (folder / "between").mkdir(parents=True)
    found = request(run, folder / "merged", **changes)
    (folder / "between" / "request.json").write_text(found.model_dump_json())
    return Exchange(folder / "between")


def merge(folder: Path, run: Path, **changes: Any) -> Path:
    """Write `folder/merged` and check it."""
    between = exchange(folder, run, **changes)
    with warnings.catch_warnings():
        write(between)
        check(between)
    logging.getLogger("bitsandbytes").setLevel(logging.NOTSET)
    return folder / "merged"
