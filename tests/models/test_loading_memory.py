"""Loading needs no second copy of the weights, and quantising one no full copy of the model as it was saved.

    python -m tests.models.test_loading_memory CHECKPOINT OVERRIDE...

loads CHECKPOINT as a run does, after a load of the tiny one has imported what is needed, and prints, in MiB: `weights`,
which the loaded model's parameters take; `allocated`, the most memory that the load has taken; `resident`, the same
with the pages of the checkpoint's files that were read. Those are the kernel's to drop and to read again: on a CPU,
weights that are neither cast nor quantised are such pages, and take no memory of their own.
"""

import gc
import json
import mmap
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import PROJECT, compose, with_recipe
from vlmft.recipes.base import num_bytes

MIB = 2**20
SHARE, SLACK = 1.05, 24
"""The bound: this share of the weights, and MiB beside them: a layer before and after quantising, PEFT's notes."""
WIDTH = {"hidden_size": 640, "intermediate_size": 2560, "num_hidden_layers": 14, "num_attention_heads": 10}


def main(path: str, overrides: list[str]) -> dict[str, float]:
    """Load, and say what it took."""
    for words in (["recipe=lora_llm"], overrides):
        with_recipe(compose(*words))
    config = compose("model=qwen25vl", f"model.path={path}", *overrides)
    gc.collect()
    model, took = watched(lambda: with_recipe(config))
    return {"weights": sum(num_bytes(parameter) for parameter in model.parameters()) / MIB} | took


def watched(load: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What `load` gives, and the most MiB by which the process grew meanwhile, looked at each millisecond."""
    start = status()
    most = dict(start)
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for name, size in status().items():
                most[name] = max(most[name], size)
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        loaded = load()
    finally:
        done.set()
        thread.join()
    most = {name: max(most[name], size) for name, size in status().items()}
    return loaded, {name: most[name] - start[name] for name in start}


def status() -> dict[str, float]:
    """This process's memory in MiB: `allocated` is what no file holds."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    names = {"allocated": "RssAnon", "resident": "VmRSS"}
    return {name: int(lines[key].split()[0]) / 1024 for name, key in names.items()}


def load(path: Path, *overrides: str) -> dict[str, float]:
    """`main` in a fresh process."""
    command = [sys.executable, "-m", "tests.models.test_loading_memory", path, *overrides]
    # glibc keeps freed blocks below this size for itself. The weights of real sizes lie above 32 MiB, which it never
    # keeps; those of this model would stay, as if they were still in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(list(map(str, command)), cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny one's classes with an LLM of 92 M parameters, in eight files: in float32 353 MiB, in bfloat16 half."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    tiny = compose().model.folder()
    values = AutoConfig.from_pretrained(tiny).to_dict()
    text = values["text_config"]
    text.pop("layer_types")
    text |= WIDTH | {"num_key_value_heads": 10, "max_window_layers": 14}
    text["rope_parameters"] = text["rope_parameters"] | {"mrope_section": [12, 10, 10]}
    values["vision_config"]["out_hidden_size"] = 640
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**values), dtype=torch.float32)
    found = {}
    for name, dtype, shard in (("float32", torch.float32, "50MB"), ("bfloat16", torch.bfloat16, "25MB")):
        folder = found[name] = tmp_path_factory.mktemp(name) / "model"
        shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        model.to(dtype).save_pretrained(folder, max_shard_size=shard)
        assert len(list(folder.glob("*.safetensors"))) == 8
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved", "words", "weights", "allocated"),
    [
        ("float32", "recipe=fft precision=fp32", 353, 0),  # all of it pages of the file
        ("bfloat16", "recipe=fft precision=bf16", 353, 353),  # what trains becomes float32
        ("float32", "recipe=lora_llm precision=bf16", 190, 190),
        ("float32", "recipe=lora_llm precision=fp32 recipe.llm.base=bf16", 190, 190),
        ("float32", "recipe=lora_llm_nf4 precision=bf16", 60, 60),
        ("bfloat16", "recipe=lora_llm_nf4 precision=fp32", 62, 62),
        ("bfloat16", "recipe=lora_llm_int8 precision=bf16", 102, 102),
    ],
)
def test_no_second_copy_is_made(
    checkpoints: dict[str, Path], saved: str, words: str, weights: float, allocated: float
) -> None:
    found = load(checkpoints[saved], *words.split())
    in_files = sum(path.stat().st_size for path in checkpoints[saved].glob("*.safetensors")) / MIB
    assert found["weights"] == pytest.approx(weights, abs=1)
    assert 0.9 * allocated <= found["allocated"] <= SHARE * allocated + SLACK, found
    assert found["resident"] <= found["allocated"] + in_files + SLACK, found


def test_a_copy_would_be_seen(tmp_path: Path) -> None:
    size = 64 * MIB
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # new from the kernel, which torch's memory need not be here
    memory = mmap.mmap(-1, size, flags=private)
    _, took = watched(lambda: memory.write(bytes(1) * size))
    assert 60 <= took["allocated"] <= 136  # with the bytes that are written
    (tmp_path / "file").write_bytes(bytes(size))
    mapped, took = watched(lambda: torch.from_file(str(tmp_path / "file"), size=size, dtype=torch.uint8).max())
    assert int(mapped) == 0 and took["allocated"] < 4 and 48 <= took["resident"] < 72  # the kernel counts in batches


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2:])))
