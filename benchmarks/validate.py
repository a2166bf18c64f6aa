"""What checking a data set costs: seconds and memory of `python -m vlmft.validate` on 100,000 LLaVA samples.

The set is generated on the local disk: one JSON list, each sample with one of 4,000 pictures (half PNG, half JPEG, five
sizes from 56 x 56 to 640 x 480), a question of 20 words and an answer of 40, drawn from 193 common English words. The
model is the tiny Qwen2.5-VL, whose tokenizer knows few words and makes more tokens of a text than Qwen's own does.
Whole commands are measured, imports and reading the file included; the number of processes is left to the command, on
the cores that `--cores` leaves it. The disk cache is warm. Memory is what the command's processes hold together, shared
pages counted once (PSS), at its highest.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import psutil
from common import provenance, show, write_result

SAMPLES, PICTURES = 100_000, 4_000
QUICK_SAMPLES, QUICK_PICTURES = 2_000, 100
SIZES = ((56, 56), (112, 84), (224, 168), (336, 448), (640, 480))
QUESTION_WORDS, ANSWER_WORDS = 20, 40
BOUND_S = {"tokens": 90.0, "headers": 60.0}
WORDS = {"tokens": (), "headers": ("tokens=false",)}
COMMON_WORDS = """
the of and to in a is that for it was on are as with they be at one have this from or had by hot but some what there we
can out other were all your when up use word how said each she which their time will way about many then them would
write like so these her long make thing see him two has look more day could go come did my sound no most number who over
know water than call first people may down side been now find any new work part take get place made live where after
back little only round man year came show every good me give our under name very through just form much great think say
help low line before turn cause same mean differ move right boy old too does tell sentence set three want air well also
play small end put home read hand port large spell add even land here must big high such follow act why ask men change
went light kind off need house picture try us again animal point mother world near build self earth father
"""


@dataclass(frozen=True)
class Measured:
    """One command."""

    seconds: float
    processor_seconds: float
    peak_bytes: int
    tokens: int | None


def main() -> int:
    """Measure, print, write benchmarks/results/validate.json; return 1 where a bound is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=2, help="cores that the command may use (default: 2)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SAMPLES} samples, and no result file")
    options = parser.parse_args()
    made = provenance()
    samples, pictures = (QUICK_SAMPLES, QUICK_PICTURES) if options.quick else (SAMPLES, PICTURES)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        generate(root, samples, pictures)
        measure(root, "headers", options.cores)  # the disk cache fills, and the tiny checkpoint is made
        measured = {name: measure(root, name, options.cores) for name in WORDS}
    show(
        f"{samples:,} samples, {pictures:,} pictures, {options.cores} cores",
        ("", "seconds", "at most", "processor seconds", "samples/s", "peak MiB"),
        [
            (
                f"vlmft.validate {' '.join(WORDS[name])}",
                f"{found.seconds:.1f}",
                f"{BOUND_S[name]:g}",
                f"{found.processor_seconds:.1f}",
                f"{samples / found.seconds:,.0f}",
                f"{found.peak_bytes / 2**20:.0f}",
            )
            for name, found in measured.items()
        ],
        [f"{(measured['tokens'].tokens or 0) / samples:.0f} tokens a sample"],
    )
    if not options.quick:
        write_result("validate", figures(measured, samples, pictures, options.cores), made)
    return int(any(found.seconds > BOUND_S[name] for name, found in measured.items()))


def figures(measured: dict[str, Measured], samples: int, pictures: int, cores: int) -> dict[str, Any]:
    """What the result file holds."""
    found: dict[str, Any] = {
        "command": "python benchmarks/validate.py",
        "samples": samples,
        "pictures": pictures,
        "picture_sizes": [f"{width} x {height}" for width, height in SIZES],
        "words": {"question": QUESTION_WORDS, "answer": ANSWER_WORDS},
        "tokens_a_sample": (measured["tokens"].tokens or 0) / samples,
        "cores": cores,
    }
    for name, one in measured.items():
        found[name] = {
            "s": one.seconds,
            "bound_s": BOUND_S[name],
            "processor_s": one.processor_seconds,
            "peak_bytes": one.peak_bytes,
        }
    return found


def generate(root: Path, samples: int, pictures: int) -> None:
    """Write the set and a registry that names it."""
    (root / "images").mkdir()
    (root / "registry/datasets").mkdir(parents=True)
    chosen, noise = random.Random(0), np.random.default_rng(0)
    names = []
    for number in range(pictures):
        name = f"images/{number:05d}.{('png', 'jpg')[number % 2]}"
        width, height = SIZES[chosen.randrange(len(SIZES))]
        coarse = noise.integers(0, 256, (height // 14, width // 14, 3), dtype=np.uint8)
        PIL.Image.fromarray(coarse).resize((width, height)).save(root / name)
        names.append(name)

    vocabulary = COMMON_WORDS.split()

    def words(count: int) -> str:
        return " ".join(chosen.choices(vocabulary, k=count))

    with (root / "set.json").open("w") as file:
        for number in range(samples):
            turns = [
                {"from": "human", "value": f"<image>\n{words(QUESTION_WORDS)}?"},
                {"from": "gpt", "value": f"{words(ANSWER_WORDS)}."},
            ]
            row = {"id": f"{number:06d}", "image": names[chosen.randrange(pictures)], "conversations": turns}
            file.write(("[" if number == 0 else ",\n") + json.dumps(row))
        file.write("]\n")
    (root / "registry/datasets/set.yaml").write_text(
        "set:\n  _target_: vlmft.data.LLaVADataset\n  data_path: set.json\n"
    )


def measure(root: Path, name: str, cores: int) -> Measured:
    """Run the command once.

    Raises:
        RuntimeError: it finds anything wrong with the set.
    """
    out = root / name
    command = [sys.executable, "-m", "vlmft.validate", "dataset=set", f"out={out}", *WORDS[name]]
    environment = os.environ | {"VLMFT_PATH": str(root)}
    start = time.perf_counter()
    process = psutil.Popen(command, cwd=root, env=environment, stdout=subprocess.DEVNULL)
    if hasattr(process, "cpu_affinity"):
        process.cpu_affinity(process.cpu_affinity()[:cores])
    peak = Peak(process)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    peak.stop()
    if os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"{command} ended with exit code {os.waitstatus_to_exitcode(status)}")
    summary = json.loads((out / "summary.json").read_text())
    tokens = summary["total"]["tokens"]
    return Measured(seconds, used.ru_utime + used.ru_stime, peak.bytes, tokens and tokens["total"])


class Peak:
    """The most that a process and its children have held at a time."""

    def __init__(self, process: psutil.Process) -> None:
        self.bytes = 0
        self._process = process
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> None:
        """End the watching."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            try:
                family: Sequence[psutil.Process] = [self._process, *self._process.children(recursive=True)]
                self.bytes = max(self.bytes, sum(process.memory_full_info().pss for process in family))
            except psutil.Error:
                continue


if __name__ == "__main__":
    sys.exit(main())
