"""What vlmft adds to a training step, in milliseconds: its loop beside a bare PyTorch one.

Both sides train copies of one model (the embedded default: a tiny Qwen2.5-VL, every weight, AdamW, fp32, 16 samples
a step) on the same samples, in one process and in turns: a bare step, a vlmft step, a bare step, ... So what else the
machine does falls on both alike. At the end both models must be equal to the last bit, or nothing was compared.

    bare    for each step: take the next batches from a torch DataLoader, normalise their pixels, forward,
            `supervised_loss`, backward, clip, AdamW, schedule, zero_grad. Its batches come collated; it reads no loss
            and writes nothing.
    vlmft   the loop as `python -m vlmft.train` runs it (transformers' Trainer inside), from asking its loader for a
            step to asking for the next: taking the step, the cut into micro-batches, collation, the same normalising
            and training, the checks of loss and gradient, the meters, metrics.jsonl, TensorBoard and the progress
            bar, with a line of each at every step.

Encoding (chat template, tokenizer, decoding and resizing pictures) is on neither side: samples are encoded, and the
bare loop's batches collated, before the clock starts. Getting them to the loop is on both: from a loader process of
its own on either side (the default), and from memory (no loader process).

Background threads (TensorBoard's writer, the bar's four pictures a second) run while either side does.
"""

import argparse
import copy
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import Any
from unittest.mock import patch

from common import Spread, provenance, show, write_result

BOUND_MS = 2.0
WARMUP = 10
LOADER_PROCESSES = (1, 0)


def main() -> int:
    """Measure, print, write benchmarks/results/loop.json; return 1 where the bound is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="steps of each side that are measured (default: 300)")
    parser.add_argument("--quick", action="store_true", help="20 steps, and no result file")
    options = parser.parse_args()
    steps = 20 if options.quick else options.steps
    made = provenance()
    measured = {workers: measure(steps, workers) for workers in LOADER_PROCESSES}
    show(
        f"milliseconds a step, {steps} steps",
        ("", "median", "p10 to p90", "mean"),
        [row for workers, figures in measured.items() for row in rows(workers, figures)],
        [
            f"{processes(workers)}: vlmft adds {figures['added_ms']:.2f} ms a step "
            f"({figures['ratio']:.3f} times the bare step); at most {BOUND_MS} ms are allowed"
            for workers, figures in measured.items()
        ],
    )
    if not options.quick:
        result = {f"loader_processes_{workers}": figures for workers, figures in measured.items()}
        write_result(
            "loop", {"command": "python benchmarks/loop.py", "unit": "ms", "bound_ms": BOUND_MS} | result, made
        )
    return int(any(figures["added_ms"] > BOUND_MS for figures in measured.values()))


def processes(workers: int) -> str:
    """Name the way that steps reach the loop."""
    return f"{workers} loader process{'' if workers == 1 else 'es'}"


def rows(workers: int, figures: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Table rows of one measurement."""
    for side in ("bare", "vlmft", "difference"):
        yield f"{processes(workers)}: {side}", *figures[side].cells()


def measure(steps: int, workers: int) -> dict[str, Any]:
    """Train both sides in turns; return their times in milliseconds, the first steps left out."""
    import torch

    turns = train_in_turns(WARMUP + steps + 1, workers)
    # The trainer asks for nothing after its last step, whose end is therefore not seen.
    bare_ms, vlmft_ms = ([1e3 * s for s in side[WARMUP:]] for side in (turns.bare_s[:-1], turns.vlmft_s))
    bare, vlmft = Spread.of(bare_ms), Spread.of(vlmft_ms)
    return {
        "bare": bare,
        "vlmft": vlmft,
        "difference": Spread.of([b - a for a, b in zip(bare_ms, vlmft_ms, strict=True)]),
        "added_ms": vlmft.median - bare.median,
        "ratio": vlmft.median / bare.median,
        "torch_threads": torch.get_num_threads(),
    }


def train_in_turns(num_steps: int, workers: int) -> "TurnTaking":
    """Carry out `python -m vlmft.train` in this process, a bare loop taking turns with its trainer; return the times.

    Raises:
        RuntimeError: the two sides did not do the same work, or vlmft's side did not write what it should.
    """
    import torch
    from rich.console import Console

    from vlmft import worker
    from vlmft.config.app import run_app
    from vlmft.launch import RanksExit
    from vlmft.run_folder import RunFolder
    from vlmft.train import TrainConfig
    from vlmft.train import train as drive
    from vlmft.training.stop import StopRequest
    from vlmft.training.trainer import StepTrainer

    trainers: list[Any] = []
    plain_train = StepTrainer.train

    def train(trainer: Any) -> None:
        trainer.parts.loader = TurnTaking(trainer)
        trainers.append(trainer)
        plain_train(trainer)

    def run_rank(command: list[str], ranks: int, env: dict[str, str], **_: Any) -> RanksExit:
        """Stand in for the driver's child process."""
        torch.set_num_threads(int(env.get("OMP_NUM_THREADS", torch.get_num_threads())))
        folder = RunFolder.open(command[-1])
        worker.work(folder, StopRequest())
        lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
        if sum("loss" in line for line in lines) != num_steps or not any(folder.tb.iterdir()):
            raise RuntimeError("metrics.jsonl has no line for each step, or TensorBoard no file")
        return RanksExit(0, None, "done")

    words = [f"trainer.max_steps={num_steps}", f"trainer.num_workers={workers}", "evaluation=none", "check_s=1"]
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        # A terminal, so that the bar is drawn as a user sees it; nobody looks at this one.
        patch("vlmft.summary.console", lambda **_: Console(file=nowhere, force_terminal=True)),
        patch.object(StepTrainer, "train", train),
        patch("vlmft.launch.run_ranks", run_rank),
    ):
        if run_app("train", TrainConfig, drive, argv=[*words, f"run.dir={folder}/run"]):
            raise RuntimeError("the run did not end well; its error is on stderr")
    (trainer,) = trainers
    turns: TurnTaking = trainer.parts.loader
    trained = trainer.model.state_dict()
    for name, weights in turns.bare.model.state_dict().items():
        if not torch.equal(weights, trained[name]):
            raise RuntimeError(f"{name} differs between the two sides: they did not do the same work")
    return turns


class InMemory:
    """Items made beforehand, for a loader to hand over."""

    def __init__(self, items: Iterable[Any], like: Any = None) -> None:
        from vlmft.encoding.loading import Watch

        self.items = list(items)
        self.plan, self.mixture = getattr(like, "plan", None), getattr(like, "mixture", None)
        self.watch = Watch()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Any:
        return self.items[number]


class BareLoop:
    """A plain PyTorch training loop, one step a call."""

    def __init__(self, model: Any, steps: list[Any], args: Any, parts: Any, workers: int) -> None:
        from transformers import get_scheduler

        self.model = model.train()
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.family, self.processor, self.device = parts.collator.family, parts.collator.processor, args.device
        self.max_grad_norm = args.max_grad_norm
        self.optimizer = parts.optim.build(parts.groups(model))
        self.schedule = get_scheduler(
            args.lr_scheduler_type,
            self.optimizer,
            args.warmup_steps,
            args.max_steps,
            scheduler_specific_kwargs=dict(args.lr_scheduler_kwargs or {}),
        )
        self.steps = InMemory(self._collated(step.samples, parts) for step in steps)
        self.workers = workers

    def _collated(self, samples: list[Any], parts: Any) -> tuple[int, list[Any]]:
        """A step's supervised tokens, and its micro-batches."""
        lengths = [sample.num_tokens for sample in samples]
        cuts = parts.batching.micro_batches(lengths, kinds=parts.collator.kinds(samples))
        batches = [parts.collator([samples[i] for i in cut]) for cut in cuts]
        return sum(sample.num_supervised for sample in samples), batches

    def run(self) -> Iterator[None]:
        """Make a step whenever asked: forward, backward, clip, update."""
        import torch
        from torch.utils.data import DataLoader

        from vlmft.training.loss import supervised_loss

        loader: DataLoader[Any] = DataLoader(self.steps, batch_size=None, num_workers=self.workers)  # type: ignore
        for supervised, batches in loader:
            for batch in batches:
                on_device = batch.to(self.device)
                inputs = self.family.model_inputs(self.processor, on_device.inputs)
                (supervised_loss(self.model, inputs, on_device.labels) / supervised).backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
            yield


class TurnTaking:
    """The loader that the trainer is given: whenever it is asked for a step, the bare loop makes one first.

    The trainer's step lasts from its turn at the loader to its next question, all that it does between included.
    """

    def __init__(self, trainer: Any) -> None:
        self.loader = trainer.parts.loader
        self.device = trainer.args.device
        workers, self.loader.num_workers = self.loader.num_workers, 0
        dataset = self.loader.dataset
        self.dataset = self.loader.dataset = InMemory((dataset[step] for step in range(len(dataset))), dataset)
        self.bare = BareLoop(copy.deepcopy(trainer.model), list(self.loader), trainer.args, trainer.parts, workers)
        self.loader.num_workers = workers
        self.bare_s: list[float] = []
        self.vlmft_s: list[float] = []
        gc.collect()

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        bare, steps = self.bare.run(), iter(self.loader)
        for _ in range(len(self.loader)):
            start = self._now()
            next(bare)
            end = self._now()
            self.bare_s.append(end - start)
            yield next(steps)
            self.vlmft_s.append(self._now() - end)

    def _now(self) -> float:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


if __name__ == "__main__":
    sys.exit(main())
