"""Preference pairs through a model. B = pairs, K = positions whose logits are computed."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded, Rejected
from vlmft.models.shared_vision import SharedVision
from vlmft.training.loss import token_log_probs
from vlmft.training.preference_loss import answer_log_probs


class PairReader:
    """Asks a model for the log-probabilities of both answers of pairs, in one forward pass."""

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def tokens(self, model: Any, pairs: Sequence[Encoded]) -> tuple[Tensor, Tensor, int]:
        """Token by token; the pictures and videos of a pair are seen once, where the family allows it.

        Returns:
            Float32 [2B, K], 0 where a sequence is not supervised, all chosen answers first; bool [2B, K], where it is;
            and the token places that went through, padding included.
        """
        sequences = [replace(pair, target=None) for pair in pairs] + [_rejected(pair) for pair in pairs]
        inputs, labels = self.collator.on_device(sequences, model)
        with SharedVision(model).repeated(2):
            log_probs, mask = token_log_probs(model, inputs, labels)
        return log_probs, mask, labels.numel()

    def answers(self, model: Any, pairs: Sequence[Encoded], ld_alpha: float | None = None) -> tuple[Tensor, Tensor]:
        """Of whole answers: chosen and rejected, each float32 [B]; `ld_alpha` as in `answer_log_probs`."""
        log_probs, mask, _ = self.tokens(model, pairs)
        chosen, rejected = answer_log_probs(log_probs, mask, ld_alpha).chunk(2)
        return chosen, rejected


def _rejected(pair: Encoded) -> Encoded:
    assert isinstance(pair.target, Rejected), pair.id
    return replace(pair, input_ids=pair.target.input_ids, supervised=pair.target.supervised, target=None)
