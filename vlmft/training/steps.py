"""The stream of optimiser steps. One item of the loader is one step of one rank, whatever its micro-batches."""

import contextlib
import time
from collections.abc import Callable, Iterator

from vlmft.data.mixture import Mixture
from vlmft.encoding.encoder import Encoder
from vlmft.encoding.loading import EncodedGroup, Watch, encode_group, load
from vlmft.errors import VlmftError
from vlmft.training.step_plan import StepPlan


class StepDataset:
    """Maps a step's number to that step of one rank, so that any loader can start at any step."""

    def __init__(self, mixture: Mixture, encoder: Encoder, plan: StepPlan, rank: int) -> None:
        self.mixture = mixture
        self.encoder = encoder
        self.plan = plan
        self.rank = rank
        self.watch = Watch()

    def __len__(self) -> int:
        return self.plan.num_steps

    def __getitem__(self, step: int) -> EncodedGroup | VlmftError:
        """This rank's samples of the step, or what stands in its way."""
        return encode_group(
            self.encoder,
            step,
            [self.mixture.at(position) for position in self.plan.positions(step, self.rank)],
            encode=lambda ref: self.encoder.encode(self.mixture.read(ref), ref.key),
            sample_id=self.mixture.sample_id,
            watch=self.watch,
        )


class StepLoader:
    """Iterates over the steps of one rank; encoding happens in loader processes where `num_workers` > 0.

    Args:
        start: the first step to give; those before it were trained before the run was resumed.
    """

    def __init__(self, dataset: StepDataset, num_workers: int, start: int = 0) -> None:
        self.dataset = dataset
        self.num_workers = num_workers
        self.start = start
        self.on_wait: Callable[[float], None] | None = None
        """Is told the seconds that each step was waited for."""

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[EncodedGroup]:
        with contextlib.closing(load(self.dataset, self.num_workers, self.start)) as steps:
            while True:
                began = time.perf_counter()
                step = next(steps, None)
                if step is None:
                    return
                if self.on_wait is not None:
                    self.on_wait(time.perf_counter() - began)
                yield step
