"""Rated answers in the stream: whether there are both kinds, and each prompt with an answer that is not its own."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vlmft.data.mixture import Mixture, SampleRef
from vlmft.data.problems import SampleError
from vlmft.errors import DataError
from vlmft.types import Rated, Sample


def refuse_one_kind(mixture: Mixture) -> None:
    """Raise `DataError` where all answers that can be read are good, or all are bad. Reads on until both are found."""
    ratings: list[bool] = []
    for position in range(len(mixture)):
        target = _target(mixture, mixture.at(position))
        if target is not None:
            ratings.append(target.good)
        if len({*ratings}) == 2:
            return
    if ratings:
        kind, label = ("good", "true") if ratings[0] else ("bad", "false")
        raise DataError(
            f"dataset: all {len(ratings)} training samples have 'label': {label}; trainer=kto tells good answers from "
            f"bad ones, and there are {kind} ones alone: add the other kind"
            + (", or take trainer=sft" if ratings[0] else "")
        )


@dataclass(frozen=True, slots=True)
class PlacedRef(SampleRef):
    """A visit that knows its place in the stream."""

    position: int


class MismatchedMixture(Mixture):
    """The same stream, each sample with the answer of another one of its step: `Rated.mismatched`.

    It is that of the nearest sample before it in the step, the first one's that of the last; samples that cannot be
    read, and the same one once more, are passed over. So it depends on the place in the stream alone.

    Args:
        step_samples: of a step, over all ranks.
    """

    def __init__(self, mixture: Mixture, step_samples: int) -> None:
        vars(self).update(vars(mixture))
        self.step_samples = step_samples

    def at(self, position: int) -> PlacedRef:
        """See `Mixture.at`."""
        ref = super().at(position)
        return PlacedRef(ref.part, ref.row, ref.epoch, ref.copy, ref.key, position)

    def read(self, ref: SampleRef) -> Sample:
        """See `Mixture.read`."""
        sample = super().read(ref)
        if not isinstance(ref, PlacedRef) or not isinstance(sample.target, Rated):
            return sample
        mismatched = next(self._answers_of_others(ref), None)
        return replace(sample, target=replace(sample.target, mismatched=mismatched))

    def _answers_of_others(self, ref: PlacedRef) -> Iterator[str]:
        start = ref.position - ref.position % self.step_samples
        for back in range(1, self.step_samples):
            other = super().at(start + (ref.position - start - back) % self.step_samples)
            if (other.part, other.row) == (ref.part, ref.row):
                continue
            if (target := _target(self, other)) is not None:
                yield target.answer


def _target(mixture: Mixture, ref: SampleRef) -> Rated | None:
    """What a visited row holds; None where it is no rated answer, or cannot be read: whoever encodes it says so."""
    try:
        target = mixture.parts[ref.part].source.target(ref.row)
    except SampleError:
        return None
    return target if isinstance(target, Rated) else None
