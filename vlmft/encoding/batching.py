"""How the samples of one optimiser step are cut into micro-batches.

The step itself never changes by it: the loss is summed over the step's supervised tokens, so any cut gives the
same gradient. Only padding, memory and time differ.
"""

import math
from collections.abc import Sequence

from pydantic import Field

from vlmft.config.spec import Spec
from vlmft.errors import DataError


class BatchingSpec(Spec, abstract=True):
    """A rule that cuts a step into micro-batches under a token budget."""

    max_tokens: int = Field(ge=1, description="token budget of a micro-batch, padding included")

    def order(self, lengths: Sequence[int]) -> list[int]:
        """The order in which samples are put into micro-batches."""
        raise NotImplementedError

    def micro_batches(
        self, lengths: Sequence[int], at_least: int = 1, kinds: Sequence[int] | None = None
    ) -> list[list[int]]:
        """Cut samples of these token lengths into micro-batches of indices, each at most `max_tokens` when padded.

        `at_least` asks for a number of micro-batches: where ranks must run equally many forward passes, the ranks
        with fewer split theirs further. Samples of different `kinds` share no micro-batch; None: any may.

        Raises:
            DataError: a sample alone exceeds the budget, or there are fewer samples than `at_least`.
        """
        if at_least > len(lengths):
            raise DataError(f"{len(lengths)} samples cannot be cut into {at_least} micro-batches")
        batches: list[list[int]] = []
        filling: dict[int, tuple[list[int], int]] = {}  # of each kind: its latest micro-batch, and the longest there
        for index in self.order(lengths):
            if lengths[index] > self.max_tokens:
                raise DataError(
                    f"a sample of {lengths[index]} tokens exceeds batching.max_tokens={self.max_tokens}; raise it"
                )
            kind = kinds[index] if kinds is not None else 0
            batch, longest = filling.get(kind, ([], 0))
            longest = max(longest, lengths[index])
            if not batch or (len(batch) + 1) * longest > self.max_tokens:
                batch, longest = [], lengths[index]
                batches.append(batch)
            batch.append(index)
            filling[kind] = batch, longest
        while len(batches) < at_least:
            largest = max(range(len(batches)), key=lambda i: len(batches[i]))
            half = math.ceil(len(batches[largest]) / 2)
            batches[largest : largest + 1] = [batches[largest][:half], batches[largest][half:]]
        return batches


class Grouped(BatchingSpec):
    """Samples of like length share a micro-batch, longest first: little padding, and a lack of memory shows early."""

    def order(self, lengths: Sequence[int]) -> list[int]:
        """Longest first; equal lengths keep the order of the data."""
        return sorted(range(len(lengths)), key=lambda i: -lengths[i])


class Padded(BatchingSpec):
    """Samples share a micro-batch in the order of the data: the plain form that others are measured against."""

    def order(self, lengths: Sequence[int]) -> list[int]:
        """The order of the data."""
        return list(range(len(lengths)))
