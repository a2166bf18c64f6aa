"""The stream of optimiser steps. One item of the loader is one step of one rank, whatever its micro-batches."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

from vlmft.data.mixture import Mixture, SampleRef
from vlmft.data.problems import SampleError, naming_sample
from vlmft.encoding.encoder import Encoder
from vlmft.encoding.loading import EncodedGroup, Watch, attempts, encode_group, load
from vlmft.errors import VlmftError
from vlmft.training.balance import Costs, digest, share_out
from vlmft.training.step_plan import StepPlan

Crashes = Mapping[int, str]
"""Place in a step -> the signal that reading its sample brought about."""


def _counting(place: int) -> int:
    """The place in a step as `Watch` knows it while costs are counted, below 0; and the way back."""
    return -1 - place


class StepDataset:
    """Maps a step's number to that step of one rank, so that any loader can start at any step.

    Args:
        costs: by which a step is shared out among several ranks; None: in turn, to each equally many samples.
    """

    def __init__(
        self, mixture: Mixture, encoder: Encoder, plan: StepPlan, rank: int, costs: Costs | None = None
    ) -> None:
        self.mixture = mixture
        self.encoder = encoder
        self.plan = plan
        self.rank = rank
        self.costs = costs if plan.world_size > 1 else None
        self.watch = Watch()

    def __len__(self) -> int:
        return self.plan.num_steps

    def __getitem__(self, step: int) -> EncodedGroup | VlmftError:
        """This rank's samples of the step, or what stands in its way."""
        if self.costs is None:
            return self.in_turn(step)
        try:
            shares = self._shares(step, self.costs)
        except VlmftError as error:
            return error
        group = self._encoded(step, shares[self.rank])
        if isinstance(group, EncodedGroup):
            group.shares = digest(shares)
        return group

    def in_turn(self, step: int, known: Crashes = MappingProxyType({})) -> EncodedGroup | VlmftError:
        """As `[step]`, shared out without a look at any sample.

        Args:
            known: crashes that `crashes_of` gave, here or on other ranks: these samples are bad ones, and not read.
        """
        for place, how in known.items():
            self.watch.crashed.setdefault((step, place), how)
        start = self.plan.positions(step, 0).start
        return self._encoded(step, [position - start for position in self.plan.positions(step, self.rank)])

    def crashes_of(self, step: int) -> Crashes:
        """The places in a step whose samples have crashed a loader process of this rank, with the signal."""
        found = {place: how for (group, place), how in self.watch.crashed.items() if group == step}
        return {(place if place >= 0 else _counting(place)): how for place, how in found.items()}

    def _shares(self, step: int, costs: Costs) -> list[list[int]]:
        """The places in the step that each rank takes."""

        def cost(ref: SampleRef) -> float:
            sample = self.mixture.read(ref)
            with naming_sample(sample.id, sample.place):
                return costs.of(self.encoder.planner, sample)

        refs = [self._at(step, place) for place in range(self.plan.global_batch_size)]
        # Places of their own: a crash in decoding, met by one rank alone, must not change what this rank counts.
        places = [_counting(place) for place in range(len(refs))]
        found = attempts(self.encoder, step, refs, cost, self.mixture.sample_id, self.watch, places)
        return share_out([None if isinstance(one, SampleError) else one for one in found], self.plan.world_size)

    def _encoded(self, step: int, places: Sequence[int]) -> EncodedGroup | VlmftError:
        for place in places:  # what crashed when its header was read is not decoded either
            if how := self.watch.crashed.get((step, _counting(place))):
                self.watch.crashed.setdefault((step, place), how)
        return encode_group(
            self.encoder,
            step,
            [self._at(step, place) for place in places],
            encode=lambda ref: self.encoder.encode(self.mixture.read(ref), ref.key),
            sample_id=self.mixture.sample_id,
            watch=self.watch,
            places=places,
        )

    def _at(self, step: int, place: int) -> SampleRef:
        return self.mixture.at(step * self.plan.global_batch_size + place)


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
