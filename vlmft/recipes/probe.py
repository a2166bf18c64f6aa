"""Find trained weights that no gradient reaches.

LLaVA reads its vision tower at the last block but one: whatever trains behind that point never moves, yet costs
optimiser state and stalls gradient synchronisation. One backward pass tells.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def freeze_unreached(model: Any, loss: Callable[[Any], "Tensor"]) -> list[str]:
    """Freeze, and name, every trained parameter for which autograd gives no gradient at all.

    Args:
        model: with a recipe applied.
        loss: the loss of a probe batch that holds every modality of the family; None means no path, zero does not.
    """
    model.train()
    loss(model).backward()
    unreached = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.requires_grad_(False)
            unreached.append(name)
    model.zero_grad(set_to_none=True)
    return unreached
