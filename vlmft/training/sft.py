"""Supervised fine-tuning: the cross entropy of every answer's tokens."""

from collections.abc import Sequence
from typing import Any, ClassVar

from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded
from vlmft.encoding.loading import EncodedGroup
from vlmft.training.loss import supervised_loss
from vlmft.training.objective import Objective, Share


class SupervisedObjective(Objective[Encoded]):
    """The mean cross entropy over the step's supervised tokens."""

    nothing: ClassVar[str] = "has no supervised token"
    reports: ClassVar[bool] = False

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def begin(self, step: int, group: EncodedGroup) -> Sequence[Encoded]:
        """The samples."""
        return group.samples

    def weights(self, units: Sequence[Encoded]) -> tuple[float, ...]:
        """The supervised tokens."""
        return (float(sum(sample.num_supervised for sample in units)),)

    def share(self, model: Any, units: Sequence[Encoded], weights: Sequence[float]) -> Share:
        """See `Objective.share`."""
        inputs, labels = self.collator.for_loss(units, model)
        return Share(supervised_loss(model, inputs, labels) / weights[0], slots=labels.numel())
