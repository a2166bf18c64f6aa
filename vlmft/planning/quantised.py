"""Stand-ins for the layers that bitsandbytes keeps in 4 and 8 bits, which it cannot make without a weight.

A stand-in holds as many bytes as bitsandbytes does, and computes as it: the weight is made wide for each product, again
in the backward pass, and of it only the narrow form is kept.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from vlmft.models.spec import ModelSpec
from vlmft.recipes.apply import components_of
from vlmft.recipes.recipe import Recipe

BLOCK, NESTED_BLOCK = 64, 256
"""Weights that share a scale in nf4, and scales that share one of theirs (double quantisation)."""


def num_bytes(base: str, rows: int, columns: int) -> int:
    """What bitsandbytes holds of a [rows, columns] weight.

    nf4: half a byte a weight, a byte a block for its scale, of which 256 share a float32. int8: a byte a weight and a
    float32 a row.
    """
    if base == "int8":
        return rows * columns + 4 * rows
    scales = math.ceil(rows * columns / BLOCK)
    return math.ceil(rows * columns / 2) + scales + 4 * math.ceil(scales / NESTED_BLOCK)


class QuantisedLinear(nn.Linear):
    """A frozen linear layer whose weight is a row of bytes."""

    def forward(self, input: Tensor) -> Tensor:
        """See `nn.Linear`."""
        if torch.is_autocast_enabled("cpu"):
            input = input.to(torch.get_autocast_dtype("cpu"))
        found: Tensor = _Product.apply(input, self.weight, self.bias, self.out_features)
        return found


class _Product(torch.autograd.Function):
    """x W' for a narrow W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape = (rows, x.shape[-1])
        wide = x.new_empty(ctx.shape)
        return nn.functional.linear(x, wide, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None]:
        (gradient,) = gradients
        wide = gradient.new_empty(ctx.shape)
        return gradient @ wide if ctx.needs_input_grad[0] else None, None, None, None


def quantise(model: Any, recipe: Recipe, family: ModelSpec) -> None:
    """Put stand-ins in the places of the layers of `model`, on the meta device, that `recipe` keeps so."""
    components = components_of(model, family)
    for name, base in recipe.quantised.items():
        component = components[name]
        for path, module in component.modules.items():
            if isinstance(module, nn.Linear) and path != component.head:
                size = num_bytes(base, *module.weight.shape)
                module.weight = nn.Parameter(torch.empty(size, dtype=torch.uint8, device="meta"), requires_grad=False)
                module.__class__ = QuantisedLinear


def copy_inputs(model: nn.Module) -> None:
    """Let adapters over stand-ins copy their inputs to float32, as PEFT's layers over bitsandbytes' do."""
    from peft.tuners.lora import Linear as AdaptedLinear

    for layer in model.modules():
        if isinstance(layer, AdaptedLinear) and isinstance(layer.get_base_layer(), QuantisedLinear):
            layer.cast_input_dtype_enabled = True
