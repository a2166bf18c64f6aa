"""What is found out about each sample, in a few bytes that all processes share: no object a sample."""

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any, TypeAlias

import numpy as np

from vlmft.data.spec import Rows, Source

Table: TypeAlias = "np.ndarray[Any, Any]"

READ, BAD, COUNTED, TOO_LONG, TOO_MUCH_VISION = 1, 2, 4, 8, 16
"""Of `state`: the row was read; the sample cannot be used; its tokens were counted; they are more than
`batching.max_tokens`; vision tokens are more than `max_vision_tokens`."""

_SAMPLE = np.dtype(
    [
        ("question", "<u8"),  # a hash of what the user's turns say and show
        ("tokens", "<i4"),
        ("vision_tokens", "<i4"),
        ("supervised_tokens", "<i4"),
        ("pictures", "<u2"),
        ("videos", "<u2"),
        ("state", "u1"),
    ]
)


def context() -> BaseContext:
    """How processes are made: as copies of this one, where that is safe (on macOS system libraries forbid it)."""
    import sys

    return multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


class Counts:
    """A row for each sample, in shared memory."""

    def __init__(self, num_samples: int) -> None:
        self._shared = context().RawArray("B", max(1, num_samples) * _SAMPLE.itemsize)
        self._num_samples = num_samples

    @property
    def table(self) -> Table:
        """The rows, written to in place."""
        return np.frombuffer(self._shared, dtype=_SAMPLE, count=self._num_samples)


@dataclass(frozen=True)
class Target:
    """Samples of one source that a run would touch."""

    source: Source
    rows: Rows
    start: int
    """Where its samples begin among all that are examined."""
    held_out: bool = False
    judged: frozenset[str] | None = None
    """Of held-out samples: the ids of those that the model is to answer; None: all."""

    @property
    def stop(self) -> int:
        """Where the next target's begin."""
        return self.start + len(self.rows)

    def row(self, item: int) -> int:
        """The row of a sample by its number among all."""
        return int(self.rows[item - self.start])

    def sample_id(self, item: int) -> str:
        """The id of a sample by its number among all."""
        return self.source.sample_id(self.row(item))

    def is_encoded(self, sample_id: str) -> bool:
        """Whether a run encodes this sample: to train on it, or to ask the model."""
        return not self.held_out or self.judged is None or sample_id in self.judged


def target_of(targets: Sequence[Target], item: int) -> Target:
    """The target that the sample of this number belongs to."""
    return next(target for target in targets if target.start <= item < target.stop)
