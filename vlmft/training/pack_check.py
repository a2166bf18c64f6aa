"""Packs of a user's own samples through the user's own model: each sample in its pack against itself alone.

K = supervised tokens of a sample, V = vocabulary. Nothing drops out, and nothing is kept: the model is for this alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from vlmft.encoding.batching import Packed
from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded
from vlmft.models.spec import Precision
from vlmft.training.loss import supervised_logits

BOUNDS: dict[Precision, float] = {"fp32": 1e-5, "bf16": 8 * 2**-7, "fp16": 8 * 2**-10}
"""The largest difference that is exact: in fp32 of the worst entry; in 16 bits, root mean squares, 8 steps of eps."""


@dataclass(frozen=True, slots=True)
class InPack:
    """A sample in its pack against itself alone; differences are shares of what they are differences to."""

    id: str
    tokens: int
    logits: float
    loss: float


@dataclass(frozen=True, slots=True)
class CheckedPack:
    """One pack; its gradients are of the trained weights, against the sums over its samples alone."""

    samples: tuple[InPack, ...]
    gradient: float
    recomputed: float
    """The same where both are computed with gradient checkpointing."""

    @property
    def worst(self) -> float:
        """The largest difference."""
        return max(self.gradient, self.recomputed, *(max(one.logits, one.loss) for one in self.samples))


def check_packs(
    model: Any,
    collator: Collator,
    samples: Sequence[Encoded],
    max_tokens: int,
    precision: Precision,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[CheckedPack]:
    """Pack the samples and compare.

    Args:
        model: with a recipe, as it trains, its LLM given the attention of packs. It is changed.
        collator: one that packs.
        samples: each with at least one supervised token.
        on_progress: takes how many of how many packs are done.
    """
    _without_dropout(model)
    cuts = Packed(max_tokens=max_tokens).micro_batches([s.num_tokens for s in samples], kinds=collator.kinds(samples))
    packs = [[samples[i] for i in cut] for cut in cuts]
    plain = []
    for number, pack in enumerate(packs):
        plain.append(_compare(model, collator, pack, precision))
        on_progress(number + 1, 2 * len(packs))
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    found = []
    for number, (pack, (rows, gradient)) in enumerate(zip(packs, plain, strict=True)):
        _, recomputed = _compare(model, collator, pack, precision)
        found.append(CheckedPack(rows, gradient, recomputed))
        on_progress(len(packs) + number + 1, 2 * len(packs))
    return found


def _compare(
    model: Any, collator: Collator, pack: Sequence[Encoded], precision: Precision
) -> tuple[tuple[InPack, ...], float]:
    """Each sample's logits and loss, and the pack's gradient.

    The samples' gradients add up where they are kept; the pack's is taken off them in place, so that no second copy of
    a large model's gradient is needed.
    """
    model.zero_grad(set_to_none=True)
    alone = []
    for sample in pack:
        logits, losses = _forward(model, collator.on_device([sample], model))
        losses.sum().backward()
        alone.append((logits.detach().cpu(), losses.detach().cpu()))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    scale = _size([p.grad for p in trained if p.grad is not None], precision)
    logits, losses = _forward(model, collator.for_loss(pack, model))
    (-losses.sum()).backward()
    left = _size([p.grad for p in trained if p.grad is not None], precision)
    model.zero_grad(set_to_none=True)
    rows, start = [], 0
    for sample, (own, own_losses) in zip(pack, alone, strict=True):
        found = logits[start : start + len(own)].detach().cpu()
        found_loss = losses[start : start + len(own)].detach().cpu().sum()
        start += len(own)
        off, loss = _size([found - own], precision) / _size([own], precision), own_losses.sum()
        rows.append(InPack(sample.id, sample.num_tokens, off, float((found_loss - loss).abs() / loss)))
    return tuple(rows), left / scale


def _forward(model: Any, batch: tuple[dict[str, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Of one row's supervised tokens: logits, float32 [K, V], and cross entropies, float32 [K]."""
    logits, targets = supervised_logits(model, *batch)
    found = logits[0].float()
    return found, F.cross_entropy(found, targets[0], reduction="none")


def _size(tensors: Sequence[Tensor], precision: Precision) -> float:
    """The largest entry in fp32, else the root of the summed squares."""
    if precision == "fp32":
        return max(float(tensor.abs().max()) for tensor in tensors)
    return float(sum(float(tensor.float().square().sum()) for tensor in tensors) ** 0.5)


def _without_dropout(model: Any) -> None:
    """In training mode, as transformers recomputes in that alone."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
