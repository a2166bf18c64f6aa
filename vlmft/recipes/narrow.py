"""Weights kept in bf16 in a run that computes in more: `base: bf16`.

What 4 and 8 bits are to bitsandbytes, these layers are to bf16: the weight stays as it is kept, and is widened for each
product, again in the backward pass, so that no wide copy of it outlives its use.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlmft.errors import ConfigError
from vlmft.recipes.policies import Component

KEPT_IN = torch.bfloat16


class NarrowLinear(nn.Linear):
    """A frozen linear layer that computes in the dtype of its input."""

    def forward(self, input: Tensor) -> Tensor:
        """See `nn.Linear`."""
        found: Tensor = _Product.apply(input, self.weight, self.bias)
        return found


class NarrowEmbedding(nn.Embedding):
    """A frozen embedding that gives vectors of another dtype than it keeps."""

    given_in: torch.dtype

    def forward(self, input: Tensor) -> Tensor:
        """See `nn.Embedding`."""
        return super().forward(input).to(self.given_in)


class _Product(torch.autograd.Function):
    """x W' + b for a frozen W; of W, only the narrow weight is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        (gradient,), (weight,) = gradients, ctx.saved_tensors
        to_x, _, to_bias = ctx.needs_input_grad
        return (
            gradient @ weight.to(gradient.dtype) if to_x else None,
            None,
            gradient.sum(dim=tuple(range(gradient.ndim - 1))) if to_bias else None,
        )


def keep_narrow(component: Component, dtype: torch.dtype | None) -> list[Tensor]:
    """Round the weights of a component's linear layers and of the LLM's embedding to bf16, in place, and return them.

    Args:
        dtype: what the run computes in; None where nothing will be computed.

    Raises:
        ConfigError: the component has none; or it has a mixture's experts, which compute in what they are kept in.
    """
    if component.experts and dtype not in (None, KEPT_IN):
        raise ConfigError(
            f"recipe.{component.name}.base: bf16 does not work on the experts of a mixture ({component.experts[0]}, "
            "...) in a run that computes in more; take precision=bf16 and base=null"
        )
    # A class derived from these may use its weight in its own way; where the head is tied to one, it stays wide too. A
    # tower's table of places stays wide: it is small, and GLM's tower reads its weight by itself.
    plain = [
        module
        for name, module in component.modules.items()
        if type(module) is nn.Linear or (type(module) is nn.Embedding and name == component.embedding)
    ]
    others = {id(p) for m in component.modules.values() if m not in plain for p in m.parameters(recurse=False)}
    kept: list[Tensor] = []
    for module in plain:
        assert isinstance(module, nn.Linear | nn.Embedding)
        if id(module.weight) in others:
            continue
        module.weight.data = module.weight.data.to(KEPT_IN)
        kept.append(module.weight)
        if dtype in (None, KEPT_IN):
            continue
        if isinstance(module, nn.Embedding):
            module.__class__ = NarrowEmbedding
            cast(NarrowEmbedding, module).given_in = dtype
        elif dtype == torch.float32:  # any other is computed in under autocast, which casts weights itself
            module.__class__ = NarrowLinear
    for name in component.experts:
        component.parameters[name].data = component.parameters[name].data.to(KEPT_IN)
        kept.append(component.parameters[name])
    if not kept:
        raise ConfigError(
            f"recipe.{component.name}.base: bf16 finds no linear layer or embedding in this component; leave it out"
        )
    return kept
