"""The policies a component may have. Each only selects; `apply` does the freezing and wrapping for all of them."""

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from vlmft.config.spec import Spec
from vlmft.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Component:
    """One component of a loaded model, as a policy sees it: names as in the unwrapped model."""

    name: str
    parameters: dict[str, "nn.Parameter"]
    modules: dict[str, "nn.Module"]
    norms: tuple[str, ...]
    blocks: tuple[str, ...]
    """Transformer blocks, first to last; empty where the component has none."""
    head: str | None
    """The output embedding, where it lies in this component: never adapted by `all-linear`."""


@dataclass(frozen=True)
class Selection:
    """What a policy trains."""

    full: frozenset[str] = frozenset()
    """Parameters trained in full."""
    adapted: tuple[str, ...] = ()
    """Linear modules that get an adapter."""


class Policy(Spec, abstract=True):
    """How one component trains."""

    def select(self, component: Component) -> Selection:
        """Choose what trains.

        Raises:
            ConfigError: the policy finds nothing it could train.
        """
        raise NotImplementedError


class Frozen(Policy):
    """Nothing trains."""

    def select(self, component: Component) -> Selection:
        """See `Policy`."""
        return Selection()


class Trains(Policy, abstract=True):
    """A policy under which something trains."""

    lr_factor: float = Field(gt=0, description="this component's learning rate, as a factor of optim.lr")


class Full(Trains):
    """Every weight trains."""

    def select(self, component: Component) -> Selection:
        """See `Policy`."""
        return Selection(full=frozenset(component.parameters))


class Norms(Trains):
    """Weight and bias of every normalisation layer train, found by module type (VILA's "LN")."""

    def select(self, component: Component) -> Selection:
        """See `Policy`."""
        names = frozenset(name for norm in component.norms for name in component.parameters if _within(name, norm))
        if not names:
            raise ConfigError(f"recipe.{component.name}: Norms found no normalisation layer in this component")
        return Selection(full=names)


class TopK(Trains):
    """The last `k` transformer blocks train in full, the rest is frozen."""

    k: int = Field(ge=1, description="how many blocks, counted from the last")

    def select(self, component: Component) -> Selection:
        """See `Policy`."""
        if self.k > len(component.blocks):
            raise ConfigError(
                f"recipe.{component.name}.k: {self.k} blocks asked for, the component has {len(component.blocks)}"
            )
        last = component.blocks[-self.k :]
        return Selection(full=frozenset(n for block in last for n in component.parameters if _within(n, block)))


class Lora(Trains):
    """Low-rank adapters on linear layers (Hu et al. 2021, arXiv:2106.09685), the base weights frozen."""

    rank: int = Field(ge=1, description="columns of the adapter's first matrix")
    alpha: float = Field(gt=0, description="the adapter's output is scaled by alpha / rank")
    dropout: float = Field(ge=0, lt=1, description="on the adapter's input")
    rslora: bool = Field(description="scale by alpha / sqrt(rank) instead (arXiv:2312.03732)")
    dora: bool = Field(description="also train each weight's magnitude (arXiv:2402.09353)")
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        description="all-linear: every linear layer but the output head; or the layers' own names, such as q_proj"
    )
    exclude: tuple[str, ...] = Field(description="linear layers whose name or path has one of these parts are left out")

    def select(self, component: Component) -> Selection:
        """See `Policy`."""
        from torch import nn

        linear = [name for name, module in component.modules.items() if isinstance(module, nn.Linear)]
        if self.targets == "all-linear":
            chosen = [name for name in linear if name != component.head]
        else:
            self._check_names(component.name, self.targets, {name.rpartition(".")[2] for name in linear})
            chosen = [name for name in linear if name.rpartition(".")[2] in self.targets]
        self._check_names(
            component.name, self.exclude, {part for name in linear for part in name.split(".")}, "exclude"
        )
        chosen = [name for name in chosen if not set(name.split(".")) & set(self.exclude)]
        if not chosen:
            raise ConfigError(f"recipe.{component.name}: Lora finds no linear layer to adapt; see targets and exclude")
        return Selection(adapted=tuple(chosen))

    @staticmethod
    def _check_names(component: str, wanted: tuple[str, ...], known: set[str], key: str = "targets") -> None:
        problems = []
        for name in wanted:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=3) or sorted(known)
                problems.append(f"recipe.{component}.{key}: no linear layer is named {name!r}; near: {', '.join(near)}")
        ConfigError.raise_if(problems)


def _within(name: str, module: str) -> bool:
    return name.startswith(module + ".")
