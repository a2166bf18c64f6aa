"""Preference pairs through a model. B = pairs, K = positions whose logits are computed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vlmft.encoding.collate import IGNORED, Collator
from vlmft.encoding.encoder import Encoded, Rejected
from vlmft.models import Auto
from vlmft.models.shared_vision import SharedVision
from vlmft.training.loss import in_rows, supervised_logits
from vlmft.training.pack_proof import Reading, answer_logits
from vlmft.training.preference_loss import answer_log_probs


@dataclass(frozen=True, slots=True)
class PairTokens:
    """What a model says of B pairs, token by token; the chosen answers come first."""

    log_probs: Tensor
    """Float32 [2B, K]; 0 where a sequence is not supervised."""
    mask: Tensor
    """Bool [2B, K]: where it is."""
    slots: int
    """Token places that went through, padding included."""
    own: Tensor | None = None
    """Float32 [2B, K], without a gradient: by how much, in nats, the token's probability is above what the model's own
    choice would have on average, log(sum of p^2). 0 where a sequence is not supervised."""


class PairReader:
    """Asks a model for the log-probabilities of both answers of pairs, in one forward pass."""

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def apart_because(self, model: Any) -> str | None:
        """Why a pair's pictures and videos are seen once for each of its answers; None: they are seen once."""
        if isinstance(self.collator.family, Auto):
            return "no test shows for this model that once is enough"
        return None if SharedVision(model).works else "this family makes no features of them apart from the text"

    def tokens(self, model: Any, pairs: Sequence[Encoded], own: bool = False) -> PairTokens:
        """Token by token; the pictures and videos of a pair are seen once, where the family allows it.

        Args:
            own: whether `PairTokens.own` is wanted.
        """
        sequences = sequences_of(pairs)
        times = 1 if self.apart_because(model) else 2
        inputs, labels = self.collator.for_loss(sequences, model, times)
        with SharedVision(model).repeated(times):
            logits, targets = supervised_logits(model, inputs, labels)
        mask = targets.ne(IGNORED)
        of_all = logits.float().log_softmax(-1)
        log_probs = of_all.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1).masked_fill(~mask, 0)
        over = None
        if own:
            with torch.no_grad():
                over = (log_probs.detach() - torch.logsumexp(2 * of_all, dim=-1)) * mask
        if self.collator.packs:
            counts = [sequence.num_supervised for sequence in sequences]
            log_probs, mask = in_rows(log_probs, counts), in_rows(mask, counts)
            over = None if over is None else in_rows(over, counts)
        return PairTokens(log_probs, mask, labels.numel(), over)

    def answers(self, model: Any, pairs: Sequence[Encoded], ld_alpha: float | None = None) -> tuple[Tensor, Tensor]:
        """Of whole answers: chosen and rejected, each float32 [B]; `ld_alpha` as in `answer_log_probs`."""
        read = self.tokens(model, pairs)
        chosen, rejected = answer_log_probs(read.log_probs, read.mask, ld_alpha).chunk(2)
        return chosen, rejected


def sequences_of(pairs: Sequence[Encoded]) -> list[Encoded]:
    """Both answers' sequences of pairs: all chosen ones first."""
    return [replace(pair, target=None) for pair in pairs] + [_rejected(pair) for pair in pairs]


BOTH_ANSWERS = Reading("logits", answer_logits, lambda sequence: sequence.num_supervised, sequences_of)
"""What is compared of a pack of pairs."""


def _rejected(pair: Encoded) -> Encoded:
    assert isinstance(pair.target, Rejected), pair.id
    return replace(pair, input_ids=pair.target.input_ids, supervised=pair.target.supervised, target=None)
