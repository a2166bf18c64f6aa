"""Files that leave a trace where anybody runs what is in them."""

import json
import os
import pickle
from pathlib import Path
from typing import Any


class Canary:
    """Unpickling it makes the folder `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def write_canary(path: Path, marker: Path) -> Path:
    """A pickle, in the form that torch.load reads, which makes `marker` where it is loaded without care."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weight": Canary(marker)}, path)
    return path


def write_plain_canary(path: Path, marker: Path) -> Path:
    """The same as a bare pickle."""
    path.write_bytes(pickle.dumps({"weight": Canary(marker)}))
    return path


def write_code_canary(folder: Path, marker: Path, **config: Any) -> None:
    """A checkpoint's own Python file, named in its `auto_map`, which makes `marker` where it is imported."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor", "AutoTokenizer")
    auto_map = dict.fromkeys(names, "canary_code.Canary")
    values = {"model_type": "canary_of_nobody", "auto_map": auto_map} | config
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "Canary", "auto_map": auto_map}))
    (folder / "canary_code.py").write_text(f"import os\nos.mkdir({str(marker)!r})\nclass Canary: pass\n")
