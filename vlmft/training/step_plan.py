"""The arithmetic of a run: how many steps there are, and which samples make which."""

import math
from dataclasses import dataclass

from vlmft.errors import ConfigError


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
        refuse_uneven_shares(global_batch_size, world_size)
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


def refuse_uneven_shares(global_batch_size: int, world_size: int) -> None:
    """Raise `ConfigError` where the ranks cannot share a step evenly."""
    if global_batch_size % world_size:
        raise ConfigError(
            f"global_batch_size: {global_batch_size} samples a step cannot be shared evenly by {world_size} ranks"
        )
