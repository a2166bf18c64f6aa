"""Run a model's real code on tensors without contents, to see what it would keep and do.

A *hollow* tensor is torch's FakeTensor: shape, dtype and device, and no memory. Weights are hollow, and whatever is
computed of them. All other tensors are real: token ids, grids and borders decide about shapes in many families' forward
pass, which torch's own FakeTensorMode would refuse, since there they have no values either.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

CPU = torch.device("cpu")
aten = torch.ops.aten

_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class Hollow(TorchDispatchMode):
    """While this is entered, an operation on real tensors is carried out, one on a hollow tensor gives a hollow one."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(item, FakeTensor) for item in tree_iter((args, kwargs))):
            return func(*args, **kwargs)
        if func in _INDEXING:
            args = _by_places(args)
        if func is aten._grouped_mm.default:
            return self._grouped(*args, **kwargs)
        with self.fake:
            return func(*args, **kwargs)

    def emptied(self, tensor: Tensor) -> Tensor:
        """The hollow tensor of this one's shape and dtype; of whole numbers on the meta device, zeros."""
        if not tensor.dtype.is_floating_point:
            return torch.zeros_like(tensor, device=CPU)
        return FakeTensor(self.fake, tensor.detach().to("meta"), CPU)

    def emptied_weight(self, tensor: Tensor) -> Tensor:
        """As `emptied`, whole numbers too: a quantised weight's."""
        return FakeTensor(self.fake, tensor.detach().to("meta"), CPU)

    def _grouped(self, a: Tensor, b: Tensor, offs: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """An expert's product for each group of rows, whose rule for shapes torch has for 16 bits alone."""
        shape = (len(a), b.shape[-1]) if b.ndim == 3 else (0 if offs is None else len(offs), a.shape[0], b.shape[-1])
        with self.fake:
            return a.new_empty(shape)


def _by_places(args: Any) -> Any:
    """Indexing by a real mask gives as many values as it has ones, which a hollow operation cannot know."""
    target, indices, *rest = args
    places: list[Tensor | None] = []
    for index in indices:
        is_mask = index is not None and not isinstance(index, FakeTensor) and index.dtype in (torch.bool, torch.uint8)
        places += index.nonzero(as_tuple=True) if is_mask else (index,)
    return (target, places, *rest)


def empty_model(model: nn.Module, hollow: Hollow) -> None:
    """Make every weight and buffer of `model` hollow, in place; tied weights stay tied."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    weight = hollow.emptied_weight(parameter.data)
                    made[id(parameter)] = nn.Parameter(weight, parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = hollow.emptied(buffer)
