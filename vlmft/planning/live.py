"""Count the bytes of the tensors that are alive, of real tensors and of hollow ones alike.

A storage counts from the operation that gives it until nothing holds it any more: views share one, and what autograd
keeps for the backward pass is held by its graph.
"""

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """While this is entered, every storage that an operation gives is counted under the part that `where` names.

    `peak` is the most that was alive at once, `at_peak` what each part held then.
    """

    def __init__(self, where: Callable[[], str] = lambda: "all") -> None:
        super().__init__()
        self.where = where
        self.now: dict[str, int] = defaultdict(int)
        self.alive = 0
        self.peak = 0
        self.at_peak: dict[str, int] = {}
        self._known: dict[int, _Held] = {}

    def hold(self, tensors: Iterable[Tensor], part: str) -> None:
        """Count tensors under `part` that are there already."""
        for tensor in tensors:
            self._see(tensor, part)

    def hold_bytes(self, part: str, size: int) -> None:
        """Count bytes of which there is no tensor."""
        self.now[part] += size
        self.alive += size

    def move(self, tensor: Tensor, part: str) -> None:
        """Count a tensor under `part` from here on."""
        held = self._known.get(tensor.untyped_storage()._cdata)
        if held is not None and held.part != part:
            self.now[held.part] -= held.size
            self.now[part] += held.size
            held.part = part

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        part = None
        for item in tree_iter(found):
            if isinstance(item, Tensor):
                part = part or self.where()
                self._see(item, part)
        return found

    def _see(self, tensor: Tensor, part: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        held = _Held(part, storage.nbytes())

        def freed(_: Any) -> None:
            del self._known[key]
            self.now[held.part] -= held.size
            self.alive -= held.size

        held.gone = weakref.ref(storage, freed)
        self._known[key] = held
        self.now[part] += held.size
        self.alive += held.size
        if self.alive > self.peak:
            self.peak = self.alive
            self.at_peak = dict(self.now)


@dataclass
class _Held:
    part: str
    size: int
    gone: Any = None
