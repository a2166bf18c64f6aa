"""Preference pairs: the losses of `preference_loss`, against the model as it stood when the run began."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlmft.encoding.encoder import Encoded
from vlmft.encoding.loading import EncodedGroup
from vlmft.errors import ConfigError, DataError
from vlmft.training.objective import Figure, Objective, Share
from vlmft.training.pairs import PairReader
from vlmft.training.preference import SORTING, Dpo
from vlmft.training.preference_loss import Pairs, answer_log_probs, preference_losses, wpo_weights
from vlmft.training.reference import start_of
from vlmft.training.reference_pass import Known


class Reference(ABC):
    """What says how likely the answers were when the run began."""

    @abstractmethod
    def answers(self, pairs: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
        """The log-probabilities of the chosen and the rejected answers, each float32 [B]."""


class Precomputed(Reference):
    """They were computed before training (`ReferencePass`)."""

    def __init__(self, known: Known) -> None:
        self.known = known

    def answers(self, pairs: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
        """See `Reference`. Raises `DataError` for a pair that could not be read before."""
        if lacking := [pair.id for pair in pairs if pair.id not in self.known]:
            raise DataError(
                *(f"{name}: could be read now, and not when the reference was computed" for name in lacking),
                "  make sure that its files stay where they are, and run the same command again",
            )
        values = torch.tensor([self.known[pair.id] for pair in pairs])
        return values[:, 0], values[:, 1]


class Live(Reference):
    """They are computed anew each time, with the start's weights put in.

    Args:
        model: as it trains, not wrapped for ranks.
        put_in: gives it the start's weights for a while.
    """

    def __init__(
        self,
        model: Any,
        put_in: Callable[[], AbstractContextManager[None]],
        reader: PairReader,
        ld_alpha: float | None,
    ) -> None:
        self.model = model
        self.put_in = put_in
        self.reader = reader
        self.ld_alpha = ld_alpha

    def answers(self, pairs: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
        """See `Reference`."""
        with start_of(self.model, self.put_in):
            return self.reader.answers(self.model, pairs, self.ld_alpha)


class Uniform(Reference):
    """Every answer is equally likely, which counts as 0."""

    def answers(self, pairs: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
        """See `Reference`."""
        return torch.zeros(len(pairs)), torch.zeros(len(pairs))


class PreferenceObjective(Objective[Encoded]):
    """The mean loss over the step's pairs."""

    nothing: ClassVar[str] = "has no pair"

    def __init__(self, reader: PairReader, knobs: Dpo, reference: Reference) -> None:
        self.reader = reader
        self.knobs = knobs
        self.reference = reference

    def begin(self, step: int, group: EncodedGroup) -> Sequence[Encoded]:
        """The pairs."""
        return group.samples

    def weights(self, units: Sequence[Encoded]) -> tuple[float, ...]:
        """The pairs, and the supervised tokens of their chosen answers."""
        return float(len(units)), float(sum(int(unit.supervised[1:].sum()) for unit in units))

    def share(self, model: Any, units: Sequence[Encoded], weights: Sequence[float]) -> Share:
        """See `Objective.share`.

        Raises:
            ConfigError: the loss sorts the step's pairs, and these are not all of them.
        """
        self._refuse_a_part(len(units), int(weights[0]))
        ref_chosen, ref_rejected = self.reference.answers(units)
        read = self.reader.tokens(model, units, own=self.knobs.wpo)
        chosen, rejected = answer_log_probs(read.log_probs, read.mask, self.knobs.ld_alpha).chunk(2)
        chosen_tokens, rejected_tokens = read.mask.sum(1).chunk(2)
        pairs = Pairs(
            chosen=chosen,
            rejected=rejected,
            ref_chosen=ref_chosen.to(chosen.device),
            ref_rejected=ref_rejected.to(chosen.device),
            chosen_tokens=chosen_tokens,
            rejected_tokens=rejected_tokens,
            chosen_nll=-read.log_probs[: len(units)].sum(1),
            weight=None if read.own is None else wpo_weights(read.own, read.mask),
        )
        losses = preference_losses(pairs, self.knobs, *weights)
        return Share(torch.stack(list(losses.values())).sum(), read.slots, self._figures(pairs, losses, weights[0]))

    def _refuse_a_part(self, here: int, everywhere: int) -> None:
        sorting = sorted(self.knobs.losses.keys() & SORTING)
        if sorting and here < everywhere:
            raise ConfigError(
                f"trainer.loss: {', '.join(sorting)} sorts all pairs of a step, and {here} of {everywhere} came to one "
                "micro-batch; raise batching.max_tokens, lower global_batch_size, or run on one rank"
            )

    def _figures(self, pairs: Pairs, losses: dict[str, Tensor], step_pairs: float) -> dict[str, Figure]:
        """Rewards are beta times the log-ratios to the reference; log-probabilities are in nats."""
        with torch.no_grad():
            c, r = (self.knobs.beta * ratio.detach() for ratio in pairs.ratios)
            n = float(len(c))
            figures: dict[str, Figure] = {
                "rewards/chosen": (c.sum(), n),
                "rewards/rejected": (r.sum(), n),
                "rewards/margin": ((c - r).sum(), n),
                "rewards/accuracy": ((c > r).float().sum(), n),
                "logps/chosen": (pairs.chosen.detach().sum(), n),
                "logps/rejected": (pairs.rejected.detach().sum(), n),
            }
            if len(losses) > 1:  # each loss's weighted part; over a step the weights add up to 1
                figures |= {f"loss/{name}": (loss.detach(), n / step_pairs) for name, loss in losses.items()}
        return figures
