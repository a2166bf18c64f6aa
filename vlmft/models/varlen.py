"""torch's attention over segments in one kernel (`varlen_attn`): what it takes, and where it can be had."""

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@cache
def varlen() -> Any:
    """The function, with the names of its arguments; None where this torch has none."""
    import inspect

    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)


def varlen_on(device: "torch.device") -> bool:
    """Whether a kind of device has the kernel: FlashAttention 2 needs Ampere (8.0) or newer.

    Where `device` is a GPU and none is here (a plan for another machine), a new enough one is meant.
    """
    import torch

    if device.type != "cuda" or varlen() is None:
        return False
    return not torch.cuda.is_available() or torch.cuda.get_device_capability(device) >= (8, 0)


def as_autocast(*tensors: "Tensor") -> "tuple[Tensor, ...]":
    """The tensors in the dtype to which autocast, where it is on, brings those of `scaled_dot_product_attention`.

    Rotated queries and keys are float32 then, as the angles are, and values are not: no kernel takes both.
    """
    import torch

    kind = tensors[0].device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors)


def varlen_usable(query: "Tensor", dropout: float) -> bool:
    """Whether the kernel takes such queries [..., D], and keys and values of their kind."""
    import torch

    width = query.shape[-1]
    takes = query.dtype in (torch.bfloat16, torch.float16) and width % 8 == 0 and width <= 256 and not dropout
    return takes and varlen_on(query.device)
