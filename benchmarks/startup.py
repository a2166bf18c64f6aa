"""What a user waits for before vlmft answers: `python -m vlmft.train --cfg job` beside `python -c "import hydra"`.

Whole processes, from start to exit, taken in turns so that what else the machine does falls on both alike. The
difference is what vlmft itself adds to Python and Hydra; a run's own checks and torch come only after this answer.

Then the same beside TRL's command line, a few times: its quickest answer that shows every setting (`trl sft --help`),
and one optimiser step, from the command to the process's end, on the tiny Qwen2.5-VL and 16 conversations of text.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from common import Spread, composed, provenance, show, write_result

BOUND_S = 0.6
BOUND_OF_TRL = 1.0
"""Of TRL's seconds, at most."""
TRL_ROUNDS = 3
TRL = str(Path(sys.executable).with_name("trl"))
COMMANDS = {
    "import hydra": [sys.executable, "-c", "import hydra"],
    "vlmft.train --cfg job": [sys.executable, "-m", "vlmft.train", "--cfg", "job"],
}


def main() -> int:
    """Measure, print, write benchmarks/results/startup.json; return 1 where the bound is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21, help="times each command is run (default: 21)")
    parser.add_argument("--quick", action="store_true", help="3 rounds, and no result file")
    options = parser.parse_args()
    made = provenance()
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(3 if options.quick else options.rounds, folder)
        plain, vlmft = (Spread.of(taken) for taken in seconds.values())
        beside = {} if options.quick else {name: Spread.of(t) for name, t in beside_trl(Path(folder)).items()}
    added = vlmft.median - plain.median
    of_trl = {
        what: beside[f"vlmft {what}"].median / beside[f"trl {what}"].median for what in ("settings", "step") if beside
    }
    show(
        "seconds from start to exit",
        ("command", "median", "p10 to p90", "mean"),
        [(name, *spread.cells()) for name, spread in ({n: Spread.of(t) for n, t in seconds.items()} | beside).items()],
        [
            f"vlmft adds {added:.2f} s to Hydra; at most {BOUND_S} s are allowed",
            *(f"{what}: {ratio:.2f} of trl's; at most {BOUND_OF_TRL} is allowed" for what, ratio in of_trl.items()),
        ],
    )
    if not options.quick:
        write_result(
            "startup",
            {
                "command": "python benchmarks/startup.py",
                "unit": "s",
                "import_hydra": plain,
                "vlmft_cfg_job": vlmft,
                "added_s": added,
                "bound_s": BOUND_S,
                "beside_trl": beside,
                "of_trl": of_trl,
                "bound_of_trl": BOUND_OF_TRL,
            },
            made,
        )
    return int(added > BOUND_S or any(ratio > BOUND_OF_TRL for ratio in of_trl.values()))


def beside_trl(folder: Path, rounds: int = TRL_ROUNDS) -> dict[str, list[float]]:
    """Seconds until the settings are shown, and of a run of one step, of both command lines."""
    model = str(composed().model.folder())
    (folder / "trl").mkdir()
    (folder / "registry/datasets").mkdir(parents=True)
    said = [("What comes next?", f"the number {number}") for number in range(16)]
    rows = [
        {"prompt": [{"role": "user", "content": a}], "completion": [{"role": "assistant", "content": b}]}
        for a, b in said
    ]
    (folder / "trl/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    turns = [[{"from": "human", "value": a}, {"from": "gpt", "value": b}] for a, b in said]
    (folder / "data.json").write_text(json.dumps([{"id": str(n), "conversations": t} for n, t in enumerate(turns)]))
    entry = {"_target_": "vlmft.data.LLaVADataset", "data_path": "data.json", "media_dir": "."}
    (folder / "registry/datasets/text.yaml").write_text(json.dumps({"text": entry}))
    train = [sys.executable, "-m", "vlmft.train"]
    words = [
        "dataset=text",
        "trainer.max_steps=1",
        "evaluation=none",
        "strategy.device=cpu",
        "run.dir=run-${now:%H%M%S%f}",
    ]
    options = ["--max_steps", "1", "--per_device_train_batch_size", "16", "--use_cpu", "--bf16", "False"]
    step = [TRL, "sft", "--model_name_or_path", model, "--dataset_name", str(folder / "trl"), *options]
    commands = {
        "vlmft settings": [*train, "--cfg", "job"],
        "trl settings": [TRL, "sft", "--help"],
        "vlmft step": [*train, *words],
        "trl step": [*step, "--output_dir", str(folder / "out"), "--report_to", "none", "--save_strategy", "no"],
    }
    return take_turns(commands, rounds, folder, {"VLMFT_PATH": str(folder), "HF_HUB_OFFLINE": "1"})


def measure(rounds: int, folder: str) -> dict[str, list[float]]:
    """The seconds of each of `COMMANDS`."""
    return take_turns(COMMANDS, rounds, folder, {})


def take_turns(
    commands: Mapping[str, Sequence[str]], rounds: int, folder: str | Path, environment: Mapping[str, str]
) -> dict[str, list[float]]:
    """Run the commands in turns, once unmeasured (the disk cache fills), then `rounds` times; return seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            start = time.perf_counter()
            done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{name} failed: {done.stderr[-2000:]}")
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
