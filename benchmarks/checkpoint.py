"""What a checkpoint costs: the time that training stands still, and the bytes on disk, against Trainer's own save.

Both save the same trainer in the same process, in turns, after a few real optimiser steps: vlmft's `Checkpoints.save`
and transformers' `Trainer._save_checkpoint`. Bytes are set against those of the trained parameters. The two do not do
the same: vlmft flushes every file to the device, hashes it and writes a manifest before the checkpoint counts, and
removes the one before it, all inside its time; Trainer does none of these, and its checkpoint cannot be resumed to the
bit on most vision-language models.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from common import Spread, make_mid_size, provenance, show, write_result

ROUNDS, QUICK_ROUNDS = 15, 3
RECIPES = ("fft", "lora_llm")
STEPS = 2


def main() -> int:
    """Measure, print, write benchmarks/results/checkpoint.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"checkpoints of each side (default: {ROUNDS})")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds, tiny model, no result file")
    options = parser.parse_args()
    made = provenance()
    with tempfile.TemporaryDirectory() as folder:
        models: dict[str, Path | None] = {"tiny": None}
        if not options.quick:
            models["mid_size"] = make_mid_size(Path(folder) / "mid_size")
        measured = {
            (model, recipe): measure(Path(folder), path, recipe, QUICK_ROUNDS if options.quick else options.rounds)
            for model, path in models.items()
            for recipe in RECIPES
        }
    show(
        "milliseconds that training stands still for a checkpoint",
        ("", "trained", "side", "MiB", "factor", "median", "p10 to p90"),
        [row for (model, recipe), found in measured.items() for row in rows(f"{model} {recipe}", found)],
        ["trained: parameters in millions; factor: bytes on disk over the bytes of the trained parameters"],
    )
    if not options.quick:
        result = {f"{model}_{recipe}": found for (model, recipe), found in measured.items()}
        write_result("checkpoint", {"command": "python benchmarks/checkpoint.py", "unit": "ms"} | result, made)
    return 0


def rows(title: str, found: dict[str, Any]) -> list[tuple[str, ...]]:
    """Table rows of one measurement."""
    trained = f"{found['trained_parameters'] / 1e6:.2f}"
    return [
        (
            title,
            trained,
            side,
            f"{found[side]['bytes'] / 2**20:.2f}",
            f"{found[side]['bytes_per_trained_byte']:.2f}",
            *found[side]["blocked_ms"].cells()[:2],
        )
        for side in ("vlmft", "trainer")
    ]


def measure(folder: Path, path: Path | None, recipe: str, rounds: int) -> dict[str, Any]:
    """Train a few steps as the command does, then save in turns.

    Raises:
        RuntimeError: the run did not end well, or a side wrote nothing.
    """
    from rich.console import Console

    from vlmft import worker
    from vlmft.config.app import run_app
    from vlmft.launch import RanksExit
    from vlmft.run_folder import RunFolder
    from vlmft.train import TrainConfig
    from vlmft.train import train as drive
    from vlmft.training.stop import StopRequest
    from vlmft.training.trainer import StepTrainer

    figures: dict[str, Any] = {}
    plain_train = StepTrainer.train

    def train(trainer: Any) -> None:
        plain_train(trainer)
        figures.update(save_in_turns(trainer, rounds))

    def run_rank(command: list[str], ranks: int, env: dict[str, str], **_: Any) -> RanksExit:
        """Stand in for the driver's child process."""
        worker.work(RunFolder.open(command[-1]), StopRequest())
        return RanksExit(0, None, "done")

    run = folder / f"{'tiny' if path is None else path.name}-{recipe}"
    words = [
        f"run.dir={run}",
        f"recipe={recipe}",
        f"trainer.max_steps={STEPS}",
        "trainer.save_every=null",
        "trainer.num_workers=0",
        "trainer.keep=1",
        "evaluation=none",
        "logger=none",
        "global_batch_size=2",
        "check_s=1",
        *([] if path is None else ["model=qwen25vl", f"model.path={path}", "precision=fp32", "dataset=shapes"]),
    ]
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        patch("vlmft.summary.console", lambda **_: Console(file=nowhere)),
        patch.object(StepTrainer, "train", train),
        patch("vlmft.launch.run_ranks", run_rank),
    ):
        if run_app("train", TrainConfig, drive, argv=words) or not figures:
            raise RuntimeError("the run did not end well; its error is on stderr")
    shutil.rmtree(run)
    return figures


def save_in_turns(trainer: Any, rounds: int) -> dict[str, Any]:
    """Save on both sides in turns, once unmeasured and then `rounds` times."""
    from transformers import Trainer

    from vlmft.training.commit import checkpoint_folder

    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    trained_bytes = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    checkpoints = trainer.checkpoints
    output = Path(trainer.args.output_dir)
    seconds: dict[str, list[float]] = {"vlmft": [], "trainer": []}
    size: dict[str, int] = {}
    for number in range(rounds + 1):
        trainer.state.global_step += 1
        step = trainer.state.global_step
        sides = {
            "vlmft": (checkpoints.save, checkpoint_folder(checkpoints.folder, step)),
            "trainer": (
                lambda: Trainer._save_checkpoint(trainer, trainer.model, trial=None),
                output / f"checkpoint-{step}",
            ),
        }
        for side in sorted(sides, reverse=bool(number % 2)):
            save, written = sides[side]
            start = time.perf_counter()
            save()
            if number:
                seconds[side].append(time.perf_counter() - start)
            size[side] = sum(file.stat().st_size for file in written.rglob("*") if file.is_file())
            if not size[side]:
                raise RuntimeError(f"{side} wrote nothing")
        shutil.rmtree(output / f"checkpoint-{step}")
    return {
        "trained_parameters": sum(parameter.numel() for parameter in trained),
        "all_parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "trained_bytes": trained_bytes,
    } | {
        side: {
            "bytes": size[side],
            "bytes_per_trained_byte": size[side] / trained_bytes,
            "blocked_ms": Spread.of([1e3 * taken for taken in seconds[side]]),
        }
        for side in seconds
    }


if __name__ == "__main__":
    sys.exit(main())
