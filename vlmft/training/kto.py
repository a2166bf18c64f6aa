"""Single answers, good or bad: the losses of `kto_loss`, against the model as it stood when the run began.

The loss of a micro-batch needs the KL divergence over the whole step. So a step reads each prompt with another
sample's answer first, without a gradient, and adds up what all ranks find.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object
from torch import Tensor

from vlmft.encoding.batching import BatchingSpec
from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded, Rating
from vlmft.encoding.loading import EncodedGroup
from vlmft.training.kto_loss import kl_estimate, rated_losses
from vlmft.training.kto_spec import Kto
from vlmft.training.loss import token_log_probs
from vlmft.training.objective import Figure, Objective, Share
from vlmft.training.reference import judging, start_of


class AnswerReader:
    """Asks a model how likely answers are, each behind its prompt."""

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def sums(self, model: Any, answers: Sequence[Encoded]) -> tuple[Tensor, int]:
        """The log-probability of each whole answer, float32 [B], and the token places that went through."""
        log_probs, _, slots = self._read(model, answers)
        return log_probs.sum(1), slots

    def means(self, model: Any, answers: Sequence[Encoded]) -> Tensor:
        """The log-probability a token of each answer, float32 [B]."""
        log_probs, mask, _ = self._read(model, answers)
        return log_probs.sum(1) / mask.sum(1).clamp(min=1)

    def _read(self, model: Any, answers: Sequence[Encoded]) -> tuple[Tensor, Tensor, int]:
        inputs, labels = self.collator.on_device([replace(one, target=None) for one in answers], model)
        return *token_log_probs(model, inputs, labels), labels.numel()


class KtoObjective(Objective[Encoded]):
    """The mean loss over the step's answers.

    Args:
        model: unwrapped; it reads what needs no gradient.
        put_in: gives it the start's weights for a while.
    """

    nothing: ClassVar[str] = "has no answer"

    def __init__(
        self,
        knobs: Kto,
        model: Any,
        reader: AnswerReader,
        batching: BatchingSpec,
        put_in: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.knobs = knobs
        self.model = model
        self.reader = reader
        self.batching = batching
        self.put_in = put_in
        self.kl = 0.0
        """Of the step under way, the same on all ranks."""

    def begin(self, step: int, group: EncodedGroup) -> Sequence[Encoded]:
        """The answers. The KL divergence is estimated."""
        if self.knobs.needs_kl:
            others = [other for unit in group.samples if (other := _with_other(unit)) is not None]
            self.kl = kl_estimate([ratio for share in gather_object([self._ratios(others)]) for ratio in share])
        return group.samples

    def weights(self, units: Sequence[Encoded]) -> tuple[float, ...]:
        """The answers."""
        return (float(len(units)),)

    def share(self, model: Any, units: Sequence[Encoded], weights: Sequence[float]) -> Share:
        """See `Objective.share`."""
        reference = self.of_the_start(units)
        said, slots = self.reader.sums(model, units)
        good = torch.tensor([_rating(unit).good for unit in units], device=said.device)
        ratios = said - reference
        losses = rated_losses(ratios, good, self.kl, self.knobs)
        return Share(losses.sum() / weights[0], slots, self._figures(units, said.detach(), ratios.detach(), good))

    def of_the_start(self, answers: Sequence[Encoded]) -> Tensor:
        """The log-probability of each answer under the model of the start, float32 [B]."""
        with start_of(self.model, self.put_in):
            return self.reader.sums(self.model, answers)[0]

    @torch.no_grad()
    def _ratios(self, answers: Sequence[Encoded]) -> list[float]:
        """How much likelier each answer is now than at the start, in nats, in any order."""
        found: list[float] = []
        kinds = self.reader.collator.kinds(answers)
        lengths = [len(answer.input_ids) for answer in answers]
        for cut in self.batching.micro_batches(lengths, kinds=kinds) if answers else []:
            some = [answers[i] for i in cut]
            with judging(self.model):
                now, _ = self.reader.sums(self.model, some)
            found += (now - self.of_the_start(some)).tolist()
        return found

    def _figures(self, units: Sequence[Encoded], said: Tensor, ratios: Tensor, good: Tensor) -> dict[str, Figure]:
        """Rewards are beta times the log-ratios to the reference; log-probabilities and the KL are in nats."""
        figures: dict[str, Figure] = {}
        for name, those in (("good", good), ("bad", ~good)):
            n = float(those.sum())
            figures |= {
                f"rewards/{name}": ((self.knobs.beta * ratios * those).sum(), n),
                f"logps/{name}": ((said * those).sum(), n),
            }
        if self.knobs.needs_kl:
            n = float(len(units))
            mismatched = sum(_rating(unit).mismatched is not None for unit in units)
            figures |= {"kl": (self.kl * n, n), "mismatched": (float(mismatched), n)}
        return figures


def _rating(unit: Encoded) -> Rating:
    assert isinstance(unit.target, Rating), unit.id
    return unit.target


def _with_other(unit: Encoded) -> Encoded | None:
    """The prompt, its media too, with another sample's answer; None where there is none."""
    other = _rating(unit).mismatched
    return None if other is None else replace(unit, input_ids=other.input_ids, supervised=other.supervised)
