"""Classification: each sample's loss over its classes, in equal parts over the samples of the step. C = classes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded
from vlmft.encoding.loading import EncodedGroup
from vlmft.models.classifier import predicted, probabilities
from vlmft.training.classification_spec import Classification, EarlyStopping
from vlmft.training.objective import Figure, Objective, Share
from vlmft.training.pack_proof import Reading
from vlmft.types import Classes, Labels

if TYPE_CHECKING:
    from torch import Tensor

POOLED = Reading("pooled states", lambda model, batch: model.pooled(**batch[0]), lambda sample: 1)
"""What a head sees of a pack's samples; at the start it gives the same logits for all."""

_SHOWN = 20  # classes with figures of their own in each line


class ClassificationObjective(Objective[Encoded]):
    """The mean over the step's samples of the chosen loss.

    Args:
        weights: of the classes, in their order; None: all weigh alike.
        best_by: the score by which early stopping counts; None: it never stops.
    """

    nothing: ClassVar[str] = "has no sample"

    def __init__(
        self,
        collator: Collator,
        trainer: Classification,
        classes: Classes,
        weights: Sequence[float] | None,
        best_by: str | None,
    ) -> None:
        self.collator = collator
        self.trainer = trainer
        self.classes = classes
        self.class_weights = None if weights is None else torch.tensor(weights, dtype=torch.float32)
        self.best_by = best_by
        self.patience = Patience(trainer.early_stopping)

    def begin(self, step: int, group: EncodedGroup) -> Sequence[Encoded]:
        """The samples."""
        return group.samples

    def weights(self, units: Sequence[Encoded]) -> tuple[float, ...]:
        """How many samples there are."""
        return (float(len(units)),)

    def share(self, model: Any, units: Sequence[Encoded], weights: Sequence[float]) -> Share:
        """See `Objective.share`."""
        inputs, labels = self.collator.for_loss(units, model)
        logits = model(**inputs)
        numbers = [self._numbers(unit) for unit in units]
        targets = self.trainer.targets_of(numbers, len(self.classes.names), self.classes.multi).to(logits.device)
        class_weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        losses = self.trainer.loss.per_sample(logits, targets, class_weights, self.classes.multi)
        return Share(
            losses.sum() / weights[0],
            slots=labels.numel(),
            figures=self._figures(logits.detach().cpu(), losses.detach().cpu(), numbers),
        )

    def judged(self, scores: Mapping[str, float]) -> None:
        """See `Objective.judged`."""
        if self.best_by is not None:
            self.patience.count(scores[self.best_by])

    @property
    def is_over(self) -> bool:
        """See `Objective.is_over`: whether patience is at its end."""
        return self.patience.is_over

    def state(self) -> dict[str, Any]:
        """See `Objective.state`."""
        return {"best": self.patience.best, "waited": self.patience.waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `Objective.restore`."""
        self.patience.best, self.patience.waited = state["best"], state["waited"]

    def _numbers(self, unit: Encoded) -> tuple[int, ...]:
        assert isinstance(unit.target, Labels)
        return self.classes.numbers(unit.target)

    def _figures(self, logits: "Tensor", losses: "Tensor", numbers: Sequence[tuple[int, ...]]) -> dict[str, Figure]:
        """How often all classes of a sample are right; of a few classes, that and the loss for each."""
        chosen = predicted(probabilities(logits, self.classes.multi), self.trainer.threshold, self.classes.multi)
        right = [float(found == own) for found, own in zip(chosen, numbers, strict=True)]
        figures: dict[str, Figure] = {"accuracy": (sum(right), float(len(right)))}
        if len(self.classes.names) > _SHOWN:
            return figures
        for number, name in enumerate(self.classes.names):
            places = [place for place, own in enumerate(numbers) if number in own]
            if places:
                figures[f"loss/{name}"] = (float(losses[places].sum()), float(len(places)))
                figures[f"accuracy/{name}"] = (sum(right[place] for place in places), float(len(places)))
        return figures


class Patience:
    """Counts evaluations in a row that are not better than the best one before them."""

    def __init__(self, spec: EarlyStopping) -> None:
        self.spec = spec
        self.best: float | None = None
        self.waited = 0

    def count(self, score: float) -> None:
        """Count an evaluation."""
        if self.best is None or score > self.best + self.spec.threshold:
            self.best, self.waited = score, 0
        else:
            self.waited += 1

    @property
    def is_over(self) -> bool:
        """Whether as many evaluations as `patience` have been waited for a better one."""
        return self.spec.patience is not None and self.waited >= self.spec.patience
