"""The stream of optimiser steps. One item of the loader is one step of one rank, whatever its micro-batches."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from vlmft.data.mixture import Mixture
from vlmft.encoding.encoder import Encoder
from vlmft.encoding.loading import EncodedGroup, encode_group, load
from vlmft.errors import ConfigError, VlmftError


@dataclass(frozen=True)
class StepPlan:
    """The arithmetic of a run: which samples make which step."""

    num_samples: int
    """Samples of one pass over the training data."""
    global_batch_size: int
    num_steps: int
    world_size: int

    @classmethod
    def derive(
        cls, num_samples: int, global_batch_size: int, epochs: float, max_steps: int | None, world_size: int
    ) -> "StepPlan":
        """Count the steps.

        Raises:
            ConfigError: the ranks cannot share a step evenly.
        """
        if global_batch_size % world_size:
            raise ConfigError(
                f"global_batch_size: {global_batch_size} samples a step cannot be shared evenly by {world_size} ranks"
            )
        num_steps = max_steps or max(1, math.ceil(num_samples * epochs / global_batch_size))
        return cls(num_samples, global_batch_size, num_steps, world_size)

    def positions(self, step: int, rank: int) -> range:
        """The places in the stream that `rank` trains on in `step` (from 0)."""
        start = step * self.global_batch_size
        return range(start + rank, start + self.global_batch_size, self.world_size)

    def __str__(self) -> str:
        share = self.global_batch_size // self.world_size
        passes = self.num_steps * self.global_batch_size / self.num_samples
        return (
            f"{self.global_batch_size} samples a step = {self.world_size} ranks x {share}; "
            f"{self.num_steps} steps x {self.global_batch_size} = {self.num_steps * self.global_batch_size} samples "
            f"= {passes:.2f} passes over {self.num_samples}"
        )


class StepDataset:
    """Maps a step's number to that step of one rank, so that any loader can start at any step."""

    def __init__(self, mixture: Mixture, encoder: Encoder, plan: StepPlan, rank: int) -> None:
        self.mixture = mixture
        self.encoder = encoder
        self.plan = plan
        self.rank = rank

    def __len__(self) -> int:
        return self.plan.num_steps

    def __getitem__(self, step: int) -> EncodedGroup | VlmftError:
        """This rank's samples of the step, or what stands in its way."""
        return encode_group(
            self.encoder,
            [self.mixture.at(position) for position in self.plan.positions(step, self.rank)],
            encode=lambda ref: self.encoder.encode(self.mixture.read(ref)),
            sample_id=self.mixture.sample_id,
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

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[EncodedGroup]:
        return load(self.dataset, self.num_workers, self.start)
