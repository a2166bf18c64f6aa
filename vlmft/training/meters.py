"""What a training step came to, and rates over the steps since the last log line."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vlmft.training.objective import Figure

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class StepTotals:
    """One optimiser step, over all ranks."""

    supervised_tokens: int
    tokens: int
    vision_tokens: int
    samples: int
    most_micro_batches: int
    """On the rank that needs most."""
    weights: tuple[float, ...] = ()
    """What the objective divides by."""
    flops: float = 0.0
    """Useful operations; 0 where they are not counted."""


@dataclass
class Progress:
    """The steps since the last log line, summed; part of a checkpoint, so that a resumed run logs the same line."""

    steps: int = 0
    loss: float = 0.0
    supervised_tokens: int = 0
    tokens: int = 0
    vision_tokens: int = 0
    samples: int = 0
    slots: int = 0
    """Token places on this rank, padding included."""
    filled: int = 0
    waited: float = 0.0
    """Seconds in which this rank had no step to work on."""
    budget: int = 0
    """Token places that this rank's packs could have held; 0 where nothing is packed."""
    micro_batches: int = 0
    """The most that a step took."""
    flops: float = 0.0
    """Useful operations, over all ranks."""
    figures: dict[str, tuple[float, float]] = field(default_factory=dict)
    """What the objective says on this rank, as sum and weight by name."""


def peak_memory(device: "torch.device") -> int:
    """Bytes of memory that this rank has taken at most so far.

    On CUDA that is what torch allocated on the device; elsewhere the process's largest resident set, in which the
    libraries count too.
    """
    import resource

    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Meters:
    """Collects steps and turns them into the figures of a log line.

    Args:
        peak_tflops: what all ranks' devices can do together; None where it is not known.
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        self.peak_tflops = peak_tflops
        self.progress = Progress()
        self._since = time.perf_counter()

    def restart(self) -> None:
        """Measure from now: what came before (loading, evaluation) is not training time."""
        self._since = time.perf_counter()

    def resume(self, progress: Progress) -> None:
        """Go on from a checkpoint's progress."""
        self.progress = progress
        self.restart()

    def add(self, totals: StepTotals, filled: int, slots: int, loss: float, budget: int = 0) -> None:
        """Count a step; `filled` of its `slots` token places on this rank held no padding. `budget`: see `Progress`."""
        now = self.progress
        now.steps += 1
        now.loss += loss
        now.supervised_tokens += totals.supervised_tokens
        now.tokens += totals.tokens
        now.vision_tokens += totals.vision_tokens
        now.samples += totals.samples
        now.flops += totals.flops
        now.slots += slots
        now.filled += filled
        now.budget += budget
        now.micro_batches = max(now.micro_batches, totals.most_micro_batches)

    def wait(self, seconds: float) -> None:
        """Count time in which there was no step to work on."""
        self.progress.waited += seconds

    def note(self, figures: Mapping[str, Figure]) -> None:
        """Add what the objective said of a step."""
        for name, (amount, weight) in figures.items():
            before = self.progress.figures.get(name, (0.0, 0.0))
            self.progress.figures[name] = (before[0] + float(amount), before[1] + weight)

    def read(self) -> dict[str, float | None]:
        """Mean loss, rates and shares since the last reading, which starts the next.

        `mfu` is the share that useful operations had of the devices' peak: None where that is not known. It and
        `useful_tflops` stand there where operations are counted.
        """
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        done, self.progress, self._since = self.progress, Progress(), now
        return {
            "loss": done.loss / max(done.steps, 1),
            "samples_per_s": done.samples / seconds,
            "tokens_per_s": done.tokens / seconds,
            "vision_tokens_per_s": done.vision_tokens / seconds,
            "supervised_tokens_per_s": done.supervised_tokens / seconds,
            "data_wait": min(done.waited / seconds, 1.0),
            "padding": 1 - done.filled / done.slots if done.slots else 0.0,
            "micro_batches": done.micro_batches,
            **self._speed(done.flops / seconds / 1e12),
            **({"pack_fill": done.filled / done.budget} if done.budget else {}),
        }

    def _speed(self, tflops: float) -> dict[str, float | None]:
        if not tflops:
            return {}
        return {"useful_tflops": tflops, "mfu": None if self.peak_tflops is None else tflops / self.peak_tflops}
