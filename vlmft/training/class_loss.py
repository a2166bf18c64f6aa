"""Losses of classification, one value a sample. B = samples, C = classes.

Values are float32 [B] and not yet averaged: the step divides their sum by the samples of the whole step, so that any
cut into micro-batches gives the same gradient. Where a sample may have several classes, it is asked a yes or no for
each, and its value is the mean over the classes.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)

if TYPE_CHECKING:
    from torch import Tensor

_TINY = 1e-12  # far below the 6e-8 that is the least 1 - p above 0 in float32


def cross_entropy(
    logits: "Tensor", targets: "Tensor", weights: "Tensor | None" = None, smoothing: float = 0.0
) -> "Tensor":
    """-w_y log p_y of each sample; with smoothing, that share of the target lies evenly on all classes.

    Args:
        logits: [B, C].
        targets: int64 [B], the class of each sample.
        weights: [C].
    """
    return F.cross_entropy(logits.float(), targets, weights, reduction="none", label_smoothing=smoothing)


def focal(logits: "Tensor", targets: "Tensor", gamma: float, alpha: "Tensor | None" = None) -> "Tensor":
    """-alpha_y (1 - p_y)^gamma log p_y of each sample, p the softmax.

    Source: T.-Y. Lin et al., "Focal Loss for Dense Object Detection" (2017), arXiv:1708.02002, equation 5, with the
    softmax in the sigmoid's place.

    Args:
        logits, targets: as of `cross_entropy`.
        alpha: [C].
    """
    loss = _focused(F.log_softmax(logits.float(), dim=-1).gather(1, targets[:, None]).squeeze(1), gamma)
    return loss if alpha is None else alpha[targets] * loss


def binary_cross_entropy(
    logits: "Tensor", targets: "Tensor", weights: "Tensor | None" = None, smoothing: float = 0.0
) -> "Tensor":
    """The mean over the classes of -w_c (t_c log p_c + (1 - t_c) log(1 - p_c)), p the sigmoid.

    Args:
        logits: [B, C].
        targets: float [B, C], 1 for each class that a sample has and 0 for the others; smoothing moves both towards a
            half by that share.
        weights: [C].
    """
    targets = targets.float() * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(logits.float(), targets, weights, reduction="none").mean(1)


def binary_focal(
    logits: "Tensor",
    targets: "Tensor",
    gamma: float,
    alpha: "Tensor | None" = None,
    weights: "Tensor | None" = None,
) -> "Tensor":
    """The mean over the classes of -a_c (1 - p_c)^gamma log p_c, where p_c is the probability of what is right of c.

    Source: as `focal`.

    Args:
        logits, targets, weights: as of `binary_cross_entropy`.
        alpha: [C]; a_c is alpha_c where a sample has the class, and 1 - alpha_c where it has not.
    """
    right = targets > 0.5
    loss = _focused(F.logsigmoid(torch.where(right, logits, -logits).float()), gamma)
    if alpha is not None:
        loss = torch.where(right, alpha, 1 - alpha) * loss
    return (loss if weights is None else weights * loss).mean(1)


def _focused(log_p: "Tensor", gamma: float) -> "Tensor":
    """-(1 - p)^gamma log p. 1 - p stays above 0, where a power below 1 has no gradient."""
    return -((-torch.expm1(log_p)).clamp_min(_TINY) ** gamma) * log_p
