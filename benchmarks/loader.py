"""Whether a loader process grows: its resident memory over ten thousand batches of pictures and videos.

A real loader (`encoding.loading`) with two processes encodes a mixture of the generated pictures and videos for the
tiny Qwen2.5-VL, 4 samples a batch, and hands each over. Memory is read after every thousandth batch; what is held to
the bound is its growth over the second half of twenty thousand. The first half holds what comes once: caches, and a
table of Python's own, of the file names that pathlib interns, which is enlarged by 7 MiB at about the 20,000th file.
"""

import argparse
import sys
import time
from multiprocessing import active_children

import psutil
from common import provenance, show, write_result

from vlmft.config.app import run_app
from vlmft.data.run_data import open_run_data
from vlmft.encoding.encoder import Encoder
from vlmft.encoding.loading import load
from vlmft.train import TrainConfig
from vlmft.training.step_plan import StepPlan
from vlmft.training.steps import StepDataset

BOUND = 0.01
SAMPLES = 4
CHOICES = ("dataset=shapes+demo_video", "dataset.shapes.weight=9", "dataset.demo_video.weight=1")


def main() -> int:
    """Measure, print, write benchmarks/results/loader.json; return 1 where a process grows by more than the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="400 batches, read after every tenth, and no result file")
    options = parser.parse_args()
    made = provenance()
    batches, every = (400, 10) if options.quick else (options.batches, 1000)
    started = time.perf_counter()
    curves = measure(batches, every, options.workers)
    half = len(curves[0]) // 2 - 1
    grown = [curve[-1] / curve[half] - 1 for curve in curves]
    show(
        f"resident memory of each loader process, MiB, over {batches} batches of {SAMPLES}",
        (
            "process",
            *(f"after {every * (number + 1)}" for number in (0, half, len(curves[0]) - 1)),
            "grown in 2nd half",
        ),
        [
            (str(number), *(f"{value / 2**20:.1f}" for value in (curve[0], curve[half], curve[-1])), f"{share:+.2%}")
            for number, (curve, share) in enumerate(zip(curves, grown, strict=True))
        ],
        [f"at most {BOUND:.0%} is allowed"],
    )
    if not options.quick:
        write_result(
            "loader",
            {
                "command": "python benchmarks/loader.py",
                "unit": "bytes",
                "choices": list(CHOICES),
                "batches": batches,
                "samples_per_batch": SAMPLES,
                "seconds": round(time.perf_counter() - started, 1),
                "read_every": every,
                "resident": curves,
                "grown_in_second_half": max(grown),
                "bound": BOUND,
            },
            made,
        )
    return int(max(grown) > BOUND)


def measure(batches: int, every: int, workers: int) -> list[list[int]]:
    """Load `batches` batches; return for each process its resident bytes, read each time `every` more have come."""
    config = composed()
    data = open_run_data(config.dataset, {}, 0.0, config.seed)
    encoder = Encoder(config.model, config.model.load_processor(), config.batching.max_tokens)
    # The processes still work on some when the last ones that are read have come.
    plan = StepPlan.derive(len(data.mixture), SAMPLES, 1.0, batches + 10 * workers, world_size=1)
    others = set(active_children())
    stream = load(StepDataset(data.mixture, encoder, plan, rank=0), workers)
    next(stream)
    processes = [psutil.Process(child.pid) for child in active_children() if child not in others]
    assert len(processes) == workers
    readings = []
    for number, _ in enumerate(stream, 2):
        if number % every == 0 and number <= batches:
            readings.append([process.memory_info().rss for process in processes])
    assert number == plan.num_steps
    return [list(curve) for curve in zip(*readings, strict=True)]


def composed() -> TrainConfig:
    """The checked config of the choices."""
    found: list[TrainConfig] = []
    if run_app("train", TrainConfig, lambda config, _: found.append(config) or 0, argv=list(CHOICES)):
        raise SystemExit(2)
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
