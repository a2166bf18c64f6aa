"""Useful floating-point operations of training: those of matrix products, convolutions and attention, as torch counts.

They are counted of a real forward and backward pass of one sample, by component. So frozen weights cost no gradients of
their own, nothing below the first trained layer costs any, and the head sees supervised rows alone. What is computed
again for recompute is no useful work: a pass of that kind is not to be counted, and the head works
on all rows at once while one is.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from vlmft.models.spec import ModelSpec
from vlmft.models.stages import HEAD, Stages
from vlmft.training.head import head_at_once

if TYPE_CHECKING:
    from vlmft.encoding.encoder import Encoded

ATTENTION = "attention of the llm"


@dataclass(frozen=True)
class FlopRates:
    """What a sample's operations follow from, forward and backward."""

    token: float
    """Of the LLM a token, without its attention."""
    token_pair: float
    """Of the LLM's attention: a token that looks at a token. Its causal half is not told apart, as is usual in MFU."""
    vision_token: float
    """Of the tower and the projector a vision token, with their attention."""
    supervised_token: float
    """Of the head a supervised token."""

    def of(self, tokens: float, pairs: float, vision_tokens: float, supervised: float) -> float:
        """The operations of some samples; `pairs` is the sum of their squared lengths."""
        return (
            self.token * tokens
            + self.token_pair * pairs
            + self.vision_token * vision_tokens
            + self.supervised_token * supervised
        )


@contextmanager
def counting_flops(model: Any, family: ModelSpec) -> Iterator[Mapping[str, int]]:
    """Count what the body computes with `model`, wrapped in adapters or not, into what is given.

    That has the operations by component, with the LLM's attention and its head apart; they add up to all.
    """
    stages = Stages(model, family)
    counter = _Counter(stages)
    with stages.watching(), head_at_once(), counter:
        yield counter.counts


class _Counter(TorchDispatchMode):
    """torch's own formulas, and those of attention on the CPU, which it leaves out."""

    def __init__(self, stages: Stages) -> None:
        super().__init__()
        self.stages = stages
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        kind = func._overloadpacket
        if (formula := flop_registry.get(kind)) is not None:
            amount = formula(*args, **kwargs, out_val=found)
        elif (attention := _ATTENTION_ON_CPU.get(kind)) is not None:
            amount = attention(*(item.shape for item in args if isinstance(item, Tensor)))
        else:
            return found
        part = self.stages.now or "llm"
        self.counts[ATTENTION if part == "llm" and "attention" in str(kind) else part] += amount
        return found


_ATTENTION_ON_CPU: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda gradient, q, k, v, *_: (
        sdpa_backward_flop_count(gradient, q, k, v)
    ),
}


def rates_of(parts: Mapping[str, int], samples: "Sequence[Encoded]") -> FlopRates:
    """The rates of what was counted of these samples, each in a row of its own length; 0 of what none of them has."""
    tokens = sum(sample.num_tokens for sample in samples)
    pairs = sum(sample.num_tokens**2 for sample in samples)
    vision = sum(sample.num_vision_tokens for sample in samples)
    supervised = sum(sample.num_supervised for sample in samples)
    seen = sum(amount for part, amount in parts.items() if part not in (HEAD, ATTENTION, "llm"))
    return FlopRates(
        token=parts.get("llm", 0) / tokens,
        token_pair=parts.get(ATTENTION, 0) / pairs,
        vision_token=seen / vision if vision else 0.0,
        supervised_token=parts.get(HEAD, 0) / supervised if supervised else 0.0,
    )
