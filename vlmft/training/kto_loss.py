"""The losses of single answers. B = answers.

A loss is a value for each answer, so that sums over micro-batches and ranks, divided by the step's answers, are the
step's loss in whatever way it was cut. The values equal those of TRL 1.16.
"""

from collections.abc import Sequence

from torch import Tensor, sigmoid, where

from vlmft.training.kto_spec import Kto


def kl_estimate(ratios: Sequence[float]) -> float:
    """The KL divergence of model and reference: the mean log-ratio of answers to other prompts, 0 at least.

    Where there is no such answer it is 0. What is no number stays none.

    Source: KTO, arXiv 2402.01306, section 4.
    """
    mean = sum(ratios) / max(1, len(ratios))
    return 0.0 if mean < 0 else mean


def rated_losses(ratios: Tensor, good: Tensor, kl: float, knobs: Kto) -> Tensor:
    """Each answer's weighted loss, float32 [B].

    kto: KTO, arXiv 2402.01306, section 4. apo_zero_unpaired: the two halves of APO-zero, arXiv 2408.06266, equation 7.

    Args:
        ratios: [B], log-ratios to the reference, in nats.
        good: bool [B].
        kl: see `kl_estimate`; not asked for by apo_zero_unpaired.
    """
    gain = knobs.beta * (ratios - kl if knobs.needs_kl else ratios)
    weight = where(good, knobs.desirable_weight, knobs.undesirable_weight)
    return weight * sigmoid(where(good, -gain, gain))
