"""Several optimisers that step as one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer


class JoinedOptimizer(Optimizer):
    """Steps each of several optimisers; its groups are theirs, one after the other.

    A schedule or a clipping that works on the groups works on theirs, as they are the same objects.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = list(parts)
        groups = [group for part in self.parts for group in part.param_groups]
        super().__init__([{"params": group["params"]} for group in groups], {})
        self._join()

    def _join(self) -> None:
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of each. A closure is not supported: the parts would call it once each."""
        if closure is not None:
            raise ValueError("a joined optimiser takes no closure")
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear every gradient."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """In torch's own form, the parameters of later parts numbered after those of earlier ones."""
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        for offset, found in self._numbered(part.state_dict() for part in self.parts):
            state |= {number + offset: value for number, value in found["state"].items()}
            groups += [group | {"params": [n + offset for n in group["params"]]} for group in found["param_groups"]]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        groups = list(state_dict["param_groups"])
        for part in self.parts:
            own, groups = groups[: len(part.param_groups)], groups[len(part.param_groups) :]
            numbers = [number for group in own for number in group["params"]]
            offset = min(numbers)
            part.load_state_dict(
                {
                    "state": {n - offset: state_dict["state"][n] for n in numbers if n in state_dict["state"]},
                    "param_groups": [group | {"params": [n - offset for n in group["params"]]} for group in own],
                }
            )
        self._join()

    @staticmethod
    def _numbered(found: Any) -> Any:
        offset = 0
        for state in found:
            yield offset, state
            offset += sum(len(group["params"]) for group in state["param_groups"])
