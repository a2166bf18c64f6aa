"""How a completion counts that a server drew by other numbers than the trainer's: importance weights, bounded.

A server computes the same weights with other kernels, so that a token's probability there is not quite the trainer's.
Weighed by trainer over server, an expectation over what the server draws is one over what the trainer would.

    truncated    Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"
    masked       Liu et al. 2025, "When Speed Kills Stability: Demystifying RL Collapse from the Training-Inference
                 Mismatch"
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmft.errors import ServerError
from vlmft.training.grpo_spec import Grpo
from vlmft.training.objective import Figure
from vlmft.training.rollouts import Rollout
from vlmft.training.rollouts_spec import VllmRollouts


@dataclass(frozen=True, slots=True)
class Drawn:
    """A server's completion as the trainer sees it. T = its tokens."""

    weights: Tensor
    """float32 [T], what each token's loss is multiplied by."""
    difference: float
    """Between the log-probs of server and trainer, summed over tokens without sign."""


def drawn_by_server(spec: Grpo, logps: Tensor, rollout: Rollout) -> Drawn:
    """Compare a completion's log-probs [T] under the trainer that made it with those under the server."""
    assert isinstance(spec.rollouts, VllmRollouts) and rollout.logps is not None
    difference = logps.cpu() - rollout.logps
    return Drawn(correction_weights(spec.rollouts, difference), float(difference.abs().sum()))


def correction_weights(spec: VllmRollouts, difference: Tensor) -> Tensor:
    """The weight of each token [T].

    Args:
        difference: [T], log-probs under the trainer less those under the server.
    """
    level, _, bound = spec.correction.partition("_")
    log_ratio = difference.sum().expand(difference.shape) if level == "sequence" else difference
    ratio = log_ratio.exp()
    if bound == "truncate":
        return ratio.clamp(spec.correction_min, spec.correction_max) if _bounded(spec) else ratio
    low, high = spec.correction_min or 0.0, spec.correction_max or torch.inf
    return ratio.masked_fill((ratio < low) | (ratio > high), 0.0)


def refuse_far(spec: Grpo, step: int, drawn: Sequence[Drawn]) -> None:
    """Refuse completions that the trainer finds much likelier, or less likely, than the server says that they were.

    Raises:
        ServerError: log-probs differ by more than `max_difference` nats a token.
    """
    assert isinstance(spec.rollouts, VllmRollouts)
    tokens = sum(len(one.weights) for one in drawn)
    found = sum(one.difference for one in drawn) / max(tokens, 1)
    if not found <= spec.rollouts.max_difference:
        raise ServerError(
            f"step {step + 1}: log-probabilities of completions by {', '.join(spec.rollouts.urls)} differ from the "
            f"trainer's by {found:.3g} nats a token, more than "
            f"trainer.rollouts.max_difference={spec.rollouts.max_difference:g}: the server has other weights, pictures "
            "or precision"
        )


def drawn_figures(drawn: Sequence[Drawn]) -> dict[str, Figure]:
    """What is to be seen of some completions: nothing where no server made them."""
    if not drawn:
        return {}
    weights = torch.cat([one.weights for one in drawn])
    tokens = float(len(weights))
    return {
        "sampling/logp_difference": (sum(one.difference for one in drawn), tokens),
        "sampling/weight": (float(weights.sum()), tokens),
        "sampling/masked": (float((weights == 0).sum()), tokens),
    }


def _bounded(spec: VllmRollouts) -> bool:
    return spec.correction_min is not None or spec.correction_max is not None
