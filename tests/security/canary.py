"""Files that leave a trace where anybody runs what is in them."""

import json
import os
import pickle
import subprocess
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


WORKING_CODE = """\
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from .canary_helper import sing

sing({song!r})


class OwnConfig(Qwen2_5_VLConfig):
    pass


class OwnModel(Qwen2_5_VLForConditionalGeneration):
    config_class = OwnConfig


class OwnProcessor(Qwen2_5_VLProcessor):
    pass
"""
HELPER_CODE = """\
def sing(song):
    with open({marker!r}, "a") as file:
        file.write(song + " ")
"""


def write_working_canary(folder: Path, marker: Path, song: str) -> None:
    """Turn a Qwen2.5-VL checkpoint into one of its own classes, which work; whoever imports them adds to `marker`."""
    from safetensors.torch import save_model
    from transformers import AutoModelForImageTextToText

    # transformers renames the weights of its own classes alone: others read the names that the modules have.
    save_model(AutoModelForImageTextToText.from_pretrained(folder), str(folder / "model.safetensors"), {"format": "pt"})
    classes = {"config.json": {"AutoConfig": "OwnConfig", "AutoModelForImageTextToText": "OwnModel"}}
    classes["processor_config.json"] = {"AutoProcessor": "OwnProcessor"}
    for name, auto_map in classes.items():
        values = json.loads((folder / name).read_text())
        values["auto_map"] = {key: f"canary_code.{value}" for key, value in auto_map.items()}
        values |= {"processor_class": "OwnProcessor"} if "processor" in name else {}
        (folder / name).write_text(json.dumps(values))
    (folder / "canary_code.py").write_text(WORKING_CODE.format(song=song))
    (folder / "canary_helper.py").write_text(HELPER_CODE.format(marker=str(marker)))


def git(folder: Path, *words: str) -> str:
    """Run git in `folder` as nobody in particular, and return what it prints."""
    who = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.com", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", "-C", str(folder), *who, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit_all(folder: Path) -> str:
    """Commit what is in `folder`, which becomes a repository; return the commit."""
    git(folder, "init", "--quiet")
    git(folder, "add", "--all", "--force", ".")
    git(folder, "commit", "--quiet", "--message", "all")
    return git(folder, "rev-parse", "HEAD")
