"""The loss of group relative policy optimisation and of its relatives, each from its paper's formula.

P = prompts, G = completions of a prompt, B = completions of a micro-batch, K = token places.

    GRPO         Shao et al. 2024, "DeepSeekMath", arXiv:2402.03300, section 4.1
    DAPO         Yu et al. 2025, arXiv:2503.14476: token-level mean, clip-higher
    Dr. GRPO     Liu et al. 2025, arXiv:2503.20783: a constant for the length, no division by the spread
    GSPO         Zheng et al. 2025, arXiv:2507.18071: the ratio of a whole completion
    CISPO        MiniMax 2025, arXiv:2506.13585, section 3.1
    SAPO         Gao et al. 2025, arXiv:2511.20347
    LUSPO        arXiv:2602.05261
    VESPO        arXiv:2602.10693
    delta        Prime Intellect 2025, "INTELLECT-2", arXiv:2505.07291: two-sided clipping
    KL           Schulman 2020, "Approximating KL divergence": the estimator k3
    weighed KL, off-policy mask
                 DeepSeek-AI 2025, "DeepSeek-V3.2", arXiv:2512.02556, equations 7 to 9
    top entropy  Wang et al. 2025, "Beyond the 80/20 Rule", arXiv:2506.01939

A loss here is a share of a whole step's: what it is divided by is counted over all completions of the step, so that
the shares of any cut into micro-batches, on any number of ranks, add up to the same loss.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlmft.training.grpo_spec import Grpo

_LEAST_SPREAD = 1e-4
"""Added to a standard deviation before dividing by it."""
_MOST_LOG_RATIO = 20.0
_LEAST_LOG_RATIO = -18.420680743952367  # log 1e-8


@dataclass(frozen=True, slots=True)
class Denominators:
    """What the losses of a whole step are divided by, over all ranks."""

    completions: float
    tokens: float
    """Of completions, without those that are masked."""
    learnt: float
    """Of these, the tokens that are learned from; see `Grpo.top_entropy`."""


@dataclass(frozen=True, slots=True)
class Extras:
    """What only some settings need of a micro-batch, each [B, K]."""

    weights: Tensor | None = None
    """Of each token where a server drew it, see `server_correction`; the KL divergence takes none."""
    drawn_logps: Tensor | None = None
    """The tokens' log-probs under whoever drew them; needed where `spec.off_policy_threshold` is set."""
    entropy: Tensor | None = None
    """Of each token's distribution, with its gradient; needed where `spec.entropy_bonus` is above 0."""
    learnt: Tensor | None = None
    """Bool, the tokens that are learned from; None: all."""


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """A micro-batch's share of the step's loss, and what is to be seen of it: name -> (sum, weight)."""

    loss: Tensor
    figures: dict[str, tuple[Tensor, float]]


def group_advantages(rewards: Tensor, scale: str, batch: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """How much more than its group's mean each completion earned.

    Args:
        rewards: [P, G].
        scale: what that is divided by: the standard deviation of the `group`, of the `batch`, or nothing (`none`).
        batch: the rewards of all completions of the step over all ranks, where they are more than `rewards`.

    Returns:
        The advantages [P, G], and the groups' standard deviations [P], by which a group of equal rewards is told.
    """
    spread = rewards.std(dim=1)  # unbiased
    above = rewards - rewards.mean(dim=1, keepdim=True)
    if scale == "group":
        above = above / (spread[:, None] + _LEAST_SPREAD)
    elif scale == "batch":
        above = above / ((rewards if batch is None else batch).std() + _LEAST_SPREAD)
    return above, spread


def kl_estimate(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Each token's estimate of the KL divergence from the reference: never below 0, and unbiased."""
    difference = ref_logps - logps
    return difference.exp() - difference - 1


def policy_loss(
    spec: Grpo,
    logps: Tensor,
    old_logps: Tensor,
    mask: Tensor,
    advantages: Tensor,
    step: Denominators,
    ref_logps: Tensor | None = None,
    extras: Extras | None = None,
) -> PolicyLoss:
    """A micro-batch's share of the step's loss.

    Args:
        logps: [B, K], of the completions' tokens under the model that trains.
        old_logps: [B, K], under the model that made them.
        mask: [B, K], 1 where there is a token that counts.
        advantages: [B].
        step: of the whole step.
        ref_logps: [B, K], under the reference; needed where `spec.beta` is above 0.
    """
    extras = extras or Extras()
    weights, mask = extras.weights, mask.to(logps.dtype)
    log_ratio = (logps - old_logps) * mask
    ratio = _ratio(spec, log_ratio, mask)
    if weights is not None and spec.loss == "vespo":  # weighs by the whole ratio to whoever drew, and needs it there
        log_ratio = log_ratio + weights.log().clamp(_LEAST_LOG_RATIO, _MOST_LOG_RATIO) * mask
    per_token, figures = _PER_TOKEN[spec.loss](spec, logps, log_ratio, ratio, advantages[:, None], mask)
    if spec.off_policy_threshold is not None:
        assert extras.drawn_logps is not None, "off_policy_threshold needs the log-probs of whoever drew"
        kept = _near(spec.off_policy_threshold, logps, extras.drawn_logps, mask) | (advantages[:, None] >= 0)
        per_token = per_token * kept
        figures["off_policy"] = ((~kept).float().sum(), float(len(kept)))
    if extras.learnt is not None:
        per_token = per_token * extras.learnt
    if weights is not None and spec.loss != "vespo":
        per_token = per_token * weights
    if spec.beta > 0:
        assert ref_logps is not None, "beta > 0 needs the reference's log-probs"
        kl = kl_estimate(logps, ref_logps) * mask
        per_token = per_token + spec.beta * (kl * ratio if spec.weighed_kl else kl)
        figures["kl"] = (kl.detach().sum(), float(mask.sum()))
    loss = _total(spec, per_token * mask, mask, step)
    if spec.entropy_bonus > 0:
        assert extras.entropy is not None, "entropy_bonus > 0 needs the tokens' entropy"
        chosen = mask if extras.learnt is None else mask * extras.learnt
        loss = loss - spec.entropy_bonus * (extras.entropy * chosen).sum() / max(step.learnt, 1.0)
    return PolicyLoss(loss, figures)


def _near(threshold: float, logps: Tensor, drawn_logps: Tensor, mask: Tensor) -> Tensor:
    """[B, 1]: whether a completion's tokens are on average at most `threshold` nats less likely than when drawn."""
    lost = ((drawn_logps - logps.detach()) * mask).sum(1, keepdim=True)
    return lost / _lengths(mask)[:, None] <= threshold


def _ratio(spec: Grpo, log_ratio: Tensor, mask: Tensor) -> Tensor:
    """New over old probability: of each token [B, K], or the geometric mean of a completion's tokens [B, 1]."""
    if spec.importance_sampling == "token":
        return log_ratio.exp()
    return (log_ratio.sum(1, keepdim=True) / _lengths(mask)[:, None]).exp()


def _lengths(mask: Tensor) -> Tensor:
    return mask.sum(1).clamp(min=1)  # a masked completion has none, and adds nothing


def _total(spec: Grpo, per_token: Tensor, mask: Tensor, step: Denominators) -> Tensor:
    """Sum what each token adds and divide by the step's count that the loss asks for."""
    if spec.loss in ("grpo", "sapo"):
        return (per_token.sum(1) / _lengths(mask)).sum() / step.completions
    if spec.loss == "luspo":
        return per_token.sum() / step.completions
    if spec.loss == "dr_grpo":
        return per_token.sum() / (step.completions * spec.max_new_tokens)
    return per_token.sum() / max(step.tokens, 1.0)


_Terms = tuple[Tensor, dict[str, tuple[Tensor, float]]]


def _clipped(spec: Grpo, logps: Tensor, log_ratio: Tensor, ratio: Tensor, advantages: Tensor, mask: Tensor) -> _Terms:
    """PPO's pessimistic choice between the ratio and the clipped ratio; `delta` also bounds the ratio from above."""
    inside = ratio.clamp(1 - spec.epsilon_low, 1 + spec.epsilon_high)
    bounded = ratio if spec.delta is None else ratio.clamp(max=spec.delta)
    loss = -torch.minimum(bounded * advantages, inside * advantages)
    low = (bounded < 1 - spec.epsilon_low) & (advantages < 0)
    high = (bounded > 1 + spec.epsilon_high) & (advantages > 0)
    figures = {"clip_ratio/low": _share(low, mask), "clip_ratio/high": _share(high, mask)}
    return loss, figures | {"clip_ratio": _share(low | high, mask)}


def _cispo(spec: Grpo, logps: Tensor, log_ratio: Tensor, ratio: Tensor, advantages: Tensor, mask: Tensor) -> _Terms:
    """REINFORCE with the bounded ratio as a constant weight: a clipped token still has a gradient."""
    weight = ratio.clamp(max=spec.epsilon_high).detach()
    clipped = (ratio > spec.epsilon_high) & (advantages > 0)
    return -weight * advantages * logps, {"clip_ratio": _share(clipped, mask)}


def _sapo(spec: Grpo, logps: Tensor, log_ratio: Tensor, ratio: Tensor, advantages: Tensor, mask: Tensor) -> _Terms:
    """A sigmoid around ratio 1, of slope 1 there, in the clip's stead."""
    above, below = spec.sapo_temperatures
    temperature = torch.where(advantages > 0, above, below)
    gate = torch.sigmoid(temperature * (ratio - 1)) * 4 / temperature
    return -gate * advantages, {}


def _vespo(spec: Grpo, logps: Tensor, log_ratio: Tensor, ratio: Tensor, advantages: Tensor, mask: Tensor) -> _Terms:
    """REINFORCE weighted by exp(lambda) w^k exp(-lambda w), where w is the ratio of the completion: 1 at w = 1."""
    of_tokens = log_ratio.detach().clamp(-_MOST_LOG_RATIO, _MOST_LOG_RATIO)
    log_w = of_tokens.sum(1, keepdim=True).clamp(_LEAST_LOG_RATIO, _MOST_LOG_RATIO)
    gains = advantages >= 0
    k, decay = (torch.where(gains, *pair) for pair in (spec.vespo_k, spec.vespo_lambda))
    weight = (decay + k * log_w - decay * log_w.exp()).exp().nan_to_num(nan=0.0, posinf=0.0)
    return -weight * advantages * logps, {"vespo_weight": (weight.sum(), float(len(weight)))}


def _share(chosen: Tensor, mask: Tensor) -> tuple[Tensor, float]:
    """How many tokens are `chosen` of how many; completions, where one ratio stands for all tokens."""
    if chosen.shape[1] == 1 and mask.shape[1] > 1:
        return chosen.float().sum(), float(len(chosen))
    return (chosen * mask).sum(), float(mask.sum())


_PER_TOKEN = {
    "grpo": _clipped,
    "bnpo": _clipped,
    "dapo": _clipped,
    "dr_grpo": _clipped,
    "luspo": _clipped,
    "cispo": _cispo,
    "sapo": _sapo,
    "vespo": _vespo,
}
