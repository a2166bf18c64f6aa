"""Whether a loader process grows: its resident memory over ten thousand batches of pictures and videos.

A real loader (`encoding.loading`) with two processes encodes a mixture of the generated pictures and videos for the
tiny Qwen2.5-VL, 4 samples a batch, and hands each over. Memory is read after a tenth of the batches, when caches are
full, and at the end.
"""

import argparse
import sys
import time
from itertools import islice
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
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="300 batches, and no result file")
    options = parser.parse_args()
    made = provenance()
    batches = 300 if options.quick else options.batches
    started = time.perf_counter()
    before, after = measure(batches, options.workers)
    grown = max(last / first - 1 for first, last in zip(before, after, strict=True))
    show(
        f"resident memory of each loader process, MiB, over {batches} batches of {SAMPLES}",
        ("process", f"after {batches // 10}", f"after {batches}", "grown"),
        [
            (str(number), f"{first / 2**20:.1f}", f"{last / 2**20:.1f}", f"{last / first - 1:+.2%}")
            for number, (first, last) in enumerate(zip(before, after, strict=True))
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
                "resident_after_a_tenth": before,
                "resident_at_the_end": after,
                "grown": grown,
                "bound": BOUND,
            },
            made,
        )
    return int(grown > BOUND)


def measure(batches: int, workers: int) -> tuple[list[int], list[int]]:
    """Load `batches` batches; return each process's resident bytes after a tenth of them, and at the end."""
    config = composed()
    data = open_run_data(config.dataset, {}, 0.0, config.seed)
    encoder = Encoder(config.model, config.model.load_processor(), config.batching.max_tokens)
    plan = StepPlan.derive(len(data.mixture), SAMPLES, 1.0, batches, world_size=1)
    others = set(active_children())
    stream = load(StepDataset(data.mixture, encoder, plan, rank=0), workers)
    seen = sum(1 for _ in islice(stream, batches // 10))
    processes = [psutil.Process(child.pid) for child in active_children() if child not in others]
    before = [process.memory_info().rss for process in processes]
    after = before
    for _ in stream:
        seen += 1
        if seen == batches - workers:  # the processes still work on the last ones
            after = [process.memory_info().rss for process in processes]
    assert seen == batches and len(processes) == workers
    return before, after


def composed() -> TrainConfig:
    """The checked config of the choices."""
    found: list[TrainConfig] = []
    if run_app("train", TrainConfig, lambda config, _: found.append(config) or 0, argv=list(CHOICES)):
        raise SystemExit(2)
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
