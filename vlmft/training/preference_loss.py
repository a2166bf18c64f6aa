"""The losses of preference pairs. B = pairs, K = positions whose logits are computed.

Notation: c and r are the log-ratios of a pair's chosen and rejected answer, log pi(y|x) - log pi_ref(y|x); b is beta,
e is label_smoothing. Every loss is a value for each pair, so that sums over micro-batches and ranks, divided by the
step's pairs, are the step's loss in whatever way it was cut. The values equal those of TRL 1.16.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from vlmft.training.preference import Dpo


@dataclass(frozen=True, slots=True)
class Pairs:
    """What the model and the reference say of B pairs. Everything is [B]; log-probabilities are float32, in nats."""

    chosen: Tensor
    """The model's log-probability of the whole answer, as `answer_log_probs` sums it up."""
    rejected: Tensor
    ref_chosen: Tensor
    """The reference's; 0 where there is none."""
    ref_rejected: Tensor
    chosen_tokens: Tensor
    """Supervised tokens of the answer."""
    rejected_tokens: Tensor
    chosen_nll: Tensor
    """Minus the sum of the chosen answer's token log-probabilities, each counted in full."""
    weight: Tensor | None = None
    """Of each pair; None: 1."""

    @property
    def ratios(self) -> tuple[Tensor, Tensor]:
        """c and r."""
        return self.chosen - self.ref_chosen, self.rejected - self.ref_rejected


def answer_log_probs(token_log_probs: Tensor, mask: Tensor, ld_alpha: float | None) -> Tensor:
    """The log-probability of each answer, [2B], from those of its tokens, [2B, K], chosen answers first.

    Args:
        mask: which of the K positions are the sequence's own supervised tokens.
        ld_alpha: weight of the tokens beyond the length of the pair's shorter answer. Source: LD-DPO,
            arXiv 2409.06411.
    """
    if ld_alpha is None:
        return (token_log_probs * mask).sum(1)
    lengths = mask.sum(1)
    shorter = torch.minimum(*lengths.chunk(2)).repeat(2)
    in_tail = mask.cumsum(1) > shorter[:, None]
    return (token_log_probs * mask * torch.where(in_tail, ld_alpha, 1.0)).sum(1)


def wpo_weights(own: Tensor, mask: Tensor) -> Tensor:
    """How likely the model itself would write each pair's answers, [B]: 1 where its tokens are of the usual kind.

    Source: WPO, arXiv 2406.11827, equation 2 with its alignment of weights.

    Args:
        own: [2B, K], see `PairTokens.own`.
        mask: bool [2B, K].
    """
    chosen, rejected = (own.sum(1) / mask.sum(1).clamp(min=1)).exp().chunk(2)
    return chosen * rejected


def preference_losses(pairs: Pairs, knobs: Dpo, num_pairs: float, num_chosen_tokens: float) -> dict[str, Tensor]:
    """These pairs' share of the step's loss, by each weighted loss of the mix.

    Args:
        num_pairs: of the whole step, over all ranks.
        num_chosen_tokens: supervised tokens of its chosen answers, which `sft` is a mean over.
    """
    over = {"sft": num_chosen_tokens}
    of_each = 1.0 if pairs.weight is None else pairs.weight
    return {
        name: weight * (FORMULAS[name](pairs, knobs) * of_each).sum() / over.get(name, num_pairs)
        for name, weight in knobs.losses.items()
    }


def _scores(pairs: Pairs, knobs: Dpo) -> tuple[Tensor, Tensor]:
    """c and r under the chosen f-divergence: f'(pi / pi_ref). Source: f-DPO, arXiv 2309.16240."""
    c, r = pairs.ratios
    return _score(c, knobs), _score(r, knobs)


def _score(ratio: Tensor, knobs: Dpo) -> Tensor:
    if knobs.f_divergence == "forward_kl":
        return -torch.expm1(-ratio)
    if knobs.f_divergence == "js":
        return math.log(2) + logsigmoid(ratio)
    power = knobs.f_alpha - 1
    if knobs.f_divergence == "alpha" and abs(power) >= 1e-6:  # at 1 it is the reverse KL
        return torch.expm1((power * ratio).clamp(max=80.0)) / power  # float32 holds e^88
    return ratio


def _difference(pairs: Pairs, knobs: Dpo) -> Tensor:
    """b (c - r)."""
    chosen, rejected = _scores(pairs, knobs)
    return knobs.beta * (chosen - rejected)


def _mean_difference(pairs: Pairs, knobs: Dpo) -> Tensor:
    """c - r, each a mean over its answer's tokens."""
    chosen, rejected = _scores(pairs, knobs)
    return chosen / pairs.chosen_tokens - rejected / pairs.rejected_tokens


def _smoothed(margin: Tensor, epsilon: float) -> Tensor:
    """-log sigmoid of the margin, where a share `epsilon` of the pairs is the wrong way round."""
    return -(1 - epsilon) * logsigmoid(margin) - epsilon * logsigmoid(-margin)


def _sigmoid(pairs: Pairs, knobs: Dpo) -> Tensor:
    """DPO, arXiv 2305.18290, equation 7."""
    return -logsigmoid(_difference(pairs, knobs))


def _sigmoid_norm(pairs: Pairs, knobs: Dpo) -> Tensor:
    """DPO of log-ratios a token: Tulu 3, arXiv 2411.15124."""
    return -logsigmoid(knobs.beta * _mean_difference(pairs, knobs))


def _hinge(pairs: Pairs, knobs: Dpo) -> Tensor:
    """SLiC-HF, arXiv 2305.10425, on DPO's margin as in RSO, arXiv 2309.06657."""
    return (1 - _difference(pairs, knobs)).clamp(min=0)


def _ipo(pairs: Pairs, knobs: Dpo) -> Tensor:
    """IPO, arXiv 2310.12036, equation 17, of log-ratios a token, as its authors compute it."""
    return (_mean_difference(pairs, knobs) - 1 / (2 * knobs.beta)) ** 2


def _exo_pair(pairs: Pairs, knobs: Dpo) -> Tensor:
    """EXO, arXiv 2402.00856, equation 16: the KL of the model's choice between the two from (1 - e, e)."""
    margin = _difference(pairs, knobs)
    own = torch.stack([logsigmoid(margin), logsigmoid(-margin)])  # [2, B]
    wanted = own.new_tensor([math.log1p(-knobs.label_smoothing), math.log(knobs.label_smoothing)])
    return (own.exp() * (own - wanted[:, None])).sum(0)


def _nca_pair(pairs: Pairs, knobs: Dpo) -> Tensor:
    """NCA, arXiv 2402.05369, for pairs."""
    c, r = pairs.ratios
    noise = logsigmoid(-knobs.beta * c) + logsigmoid(-knobs.beta * r)
    return -logsigmoid(knobs.beta * c) - noise / 2


def _robust(pairs: Pairs, knobs: Dpo) -> Tensor:
    """Robust DPO, arXiv 2403.00409: its mean is DPO's where a share e of the pairs is flipped."""
    margin, epsilon = _difference(pairs, knobs), knobs.label_smoothing
    return ((1 - epsilon) * -logsigmoid(margin) - epsilon * -logsigmoid(-margin)) / (1 - 2 * epsilon)


def _bco_pair(pairs: Pairs, knobs: Dpo) -> Tensor:
    """BCO, arXiv 2404.04656, for pairs and without its running shift."""
    c, r = pairs.ratios
    return -logsigmoid(knobs.beta * c) - logsigmoid(-knobs.beta * r)


def _sppo_hard(pairs: Pairs, knobs: Dpo) -> Tensor:
    """SPPO, arXiv 2405.00675, equation 4.7, where the chosen answer wins with probability 1."""
    c, r = pairs.ratios
    half = 1 / (2 * knobs.beta)
    return (c - half) ** 2 + (r + half) ** 2


def _aot(pairs: Pairs, knobs: Dpo) -> Tensor:
    """AOT, arXiv 2406.05882, paired: the sorted margins of the model against the sorted ones of the reference."""
    own = (pairs.chosen - pairs.rejected).sort().values
    reference = (pairs.ref_chosen - pairs.ref_rejected).sort().values
    return _smoothed(knobs.beta * (own - reference), knobs.label_smoothing)


def _aot_unpaired(pairs: Pairs, knobs: Dpo) -> Tensor:
    """AOT, arXiv 2406.05882, unpaired: the sorted c against the sorted r."""
    c, r = pairs.ratios
    return _smoothed(knobs.beta * (c.sort().values - r.sort().values), knobs.label_smoothing)


def _apo_zero(pairs: Pairs, knobs: Dpo) -> Tensor:
    """APO-zero, arXiv 2408.06266, equation 7: for chosen answers better than the model's own."""
    c, r = pairs.ratios
    return torch.sigmoid(-knobs.beta * c) + torch.sigmoid(knobs.beta * r)


def _apo_down(pairs: Pairs, knobs: Dpo) -> Tensor:
    """APO-down, arXiv 2408.06266, equation 8: for chosen answers worse than the model's own."""
    c, r = pairs.ratios
    return torch.sigmoid(knobs.beta * c) + torch.sigmoid(-knobs.beta * (c - r))


def _discopop(pairs: Pairs, knobs: Dpo) -> Tensor:
    """DiscoPOP, arXiv 2406.08414, equation 5: goes over from the logistic loss to the exponential one."""
    margin = _difference(pairs, knobs)
    exponential = torch.sigmoid(margin / knobs.discopop_tau)
    return (1 - exponential) * -logsigmoid(margin) + exponential * torch.exp(-margin)


def _sft(pairs: Pairs, knobs: Dpo) -> Tensor:
    """The chosen answer's cross entropy, summed over its tokens."""
    return pairs.chosen_nll


def _cpo(pairs: Pairs, knobs: Dpo) -> Tensor:
    """CPO, arXiv 2401.08417, equation 3; its paper adds sft."""
    return -logsigmoid(knobs.beta * (pairs.chosen - pairs.rejected))


def _token_means(pairs: Pairs) -> tuple[Tensor, Tensor]:
    return pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens


def _simpo(pairs: Pairs, knobs: Dpo) -> Tensor:
    """SimPO, arXiv 2405.14734, equation 6."""
    chosen, rejected = _token_means(pairs)
    return -logsigmoid(knobs.beta * (chosen - rejected) - knobs.simpo_gamma)


def _orpo(pairs: Pairs, knobs: Dpo) -> Tensor:
    """ORPO, arXiv 2403.07691, equation 7, times b, which is its lambda; its paper adds sft."""
    chosen, rejected = (_log_odds(mean) for mean in _token_means(pairs))
    return -knobs.beta * logsigmoid(chosen - rejected)


def _log_odds(log_prob: Tensor) -> Tensor:
    """log(p / (1 - p)); a p of 1, to float32's last digit, has no finite one and counts as just below."""
    log_prob = log_prob.clamp(max=-1e-7)
    return log_prob - torch.log(-torch.expm1(log_prob))


FORMULAS: dict[str, Callable[[Pairs, Dpo], Tensor]] = {
    "sigmoid": _sigmoid,
    "sigmoid_norm": _sigmoid_norm,
    "hinge": _hinge,
    "ipo": _ipo,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "robust": _robust,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "aot": _aot,
    "aot_unpaired": _aot_unpaired,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
    "sft": _sft,
    "cpo": _cpo,
    "simpo": _simpo,
    "orpo": _orpo,
}
"""By the names of `preference.LOSSES`."""
