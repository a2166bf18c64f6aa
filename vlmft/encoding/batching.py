"""How the samples of one optimiser step are cut into micro-batches.

The step itself never changes by it: the loss is summed over the step's supervised tokens, so any cut gives the
same gradient. Only padding, memory and time differ.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from vlmft.config.spec import Spec
from vlmft.errors import DataError


class BatchingSpec(Spec, abstract=True):
    """A rule that cuts a step into micro-batches under a token budget."""

    packs: ClassVar[bool] = False
    """A micro-batch is one row, in which its samples stand end to end; else they are padded to rows of one length."""

    max_tokens: int = Field(ge=1, description="token budget of a micro-batch, padding included")

    def fill(self, lengths: Sequence[int], kinds: Sequence[int]) -> list[list[int]]:
        """The fewest micro-batches of indices that the rule comes to; no length exceeds the budget."""
        raise NotImplementedError

    def micro_batches(
        self, lengths: Sequence[int], at_least: int = 1, kinds: Sequence[int] | None = None
    ) -> list[list[int]]:
        """Cut samples of these token lengths into micro-batches of indices, each at most `max_tokens` with its padding.

        `at_least` asks for a number of micro-batches: where ranks must run equally many forward passes, the ranks
        with fewer split theirs further. Samples of different `kinds` share no micro-batch; None: any may.

        Raises:
            DataError: a sample alone exceeds the budget, or there are fewer samples than `at_least`.
        """
        if at_least > len(lengths):
            raise DataError(f"{len(lengths)} samples cannot be cut into {at_least} micro-batches")
        for length in lengths:
            if length > self.max_tokens:
                raise DataError(f"a sample of {length} tokens exceeds batching.max_tokens={self.max_tokens}; raise it")
        batches = self.fill(lengths, [0] * len(lengths) if kinds is None else kinds)
        while len(batches) < at_least:
            largest = max(range(len(batches)), key=lambda i: len(batches[i]))
            half = math.ceil(len(batches[largest]) / 2)
            batches[largest : largest + 1] = [batches[largest][:half], batches[largest][half:]]
        return batches


class _Rows(BatchingSpec, abstract=True):
    """Samples are padded to rows as long as the longest of their micro-batch."""

    def order(self, lengths: Sequence[int]) -> list[int]:
        """The order in which samples are put into micro-batches."""
        raise NotImplementedError

    def fill(self, lengths: Sequence[int], kinds: Sequence[int]) -> list[list[int]]:
        """One micro-batch of each kind is filled at a time."""
        batches: list[list[int]] = []
        filling: dict[int, tuple[list[int], int]] = {}  # of each kind: its latest micro-batch, and the longest there
        for index in self.order(lengths):
            batch, longest = filling.get(kinds[index], ([], 0))
            longest = max(longest, lengths[index])
            if not batch or (len(batch) + 1) * longest > self.max_tokens:
                batch, longest = [], lengths[index]
                batches.append(batch)
            batch.append(index)
            filling[kinds[index]] = batch, longest
        return batches


class Grouped(_Rows):
    """Samples of like length share a micro-batch, longest first: little padding, and a lack of memory shows early."""

    def order(self, lengths: Sequence[int]) -> list[int]:
        """Longest first; equal lengths keep the order of the data."""
        return sorted(range(len(lengths)), key=lambda i: -lengths[i])


class AutoBatching(Grouped):
    """Packed where it is exact and pays, else grouped: a run settles it before it trains (`vlmft.settling`)."""


class Padded(_Rows):
    """Samples share a micro-batch in the order of the data: the plain form that others are measured against."""

    def order(self, lengths: Sequence[int]) -> list[int]:
        """The order of the data."""
        return list(range(len(lengths)))


class Packed(BatchingSpec):
    """Samples stand end to end in one row, and each is computed as if it were alone: no padding at all.

    First-fit decreasing: the longest sample first, each into the first pack that it still fits into.
    """

    packs: ClassVar[bool] = True

    def fill(self, lengths: Sequence[int], kinds: Sequence[int]) -> list[list[int]]:
        """See `BatchingSpec.fill`; of equally long samples the data's order is kept."""
        packs: list[list[int]] = []
        filled: list[int] = []
        for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            for number, pack in enumerate(packs):
                if filled[number] + lengths[index] <= self.max_tokens and kinds[pack[0]] == kinds[index]:
                    pack.append(index)
                    filled[number] += lengths[index]
                    break
            else:
                packs.append([index])
                filled.append(lengths[index])
        return packs
