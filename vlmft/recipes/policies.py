"""The policies a component may have. Each only selects; `apply` does the freezing and wrapping for all of them."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from vlmft.config.spec import Spec
from vlmft.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

Base = Literal["nf4", "int8", "bf16"]
"""What a base is kept in: 4-bit NormalFloat with double quantisation (arXiv:2305.14314), LLM.int8() (arXiv:2208.07339),
or bf16 whatever the run computes in.

fp32 is none: it is the run's precision, or under autocast rounded to that for each product. Nor is fp16, which cannot
hold what bf16 checkpoints hold.
"""


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
    """The output embedding, where it lies in this component: adapted only by its name."""
    embedding: str | None = None
    """The input embedding, where it lies in this component: adapted only by its name, together with the head."""
    tied: bool = False
    """Whether head and embedding are one weight."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """What a linear module or an entry of `experts` is part of: `attention` or `mlp`, by the class around it."""
    experts: tuple[str, ...] = ()
    """Parameters that hold a matrix for each expert of a mixture: 3-D, [experts, ., .]."""


@dataclass(frozen=True)
class Selection:
    """What a policy trains."""

    full: frozenset[str] = frozenset()
    """Parameters trained in full."""
    adapted: tuple[str, ...] = ()
    """Linear modules that get an adapter."""
    experts: tuple[str, ...] = ()
    """Experts' parameters that get one: a pair of matrices for each expert."""


class Policy(Spec, abstract=True):
    """How one component trains."""

    def select(self, component: Component) -> Selection:
        """Choose what trains.

        Raises:
            ConfigError: the policy finds nothing it could train.
        """
        raise NotImplementedError


def own_rate(lr: float | None, lr_factor: float | None, peak: float) -> float:
    """A rate given as itself or as a factor of `peak`, the run's own; a spec has made sure that one of them is."""
    if lr is not None:
        return lr
    assert lr_factor is not None
    return peak * lr_factor


class Frozen(Policy):
    """Nothing trains."""

    lr_factor: float | None = Field(
        description="of no effect; it lets a recipe that sets the rate of a component be typed with frozen",
    )
    base: Literal["bf16"] | None = Field(
        description="bf16: this component's linear layers are kept so, and the LLM's embedding, whatever the run's "
        "precision; null: in that (nf4 and int8 need adapters)"
    )

    def select(self, component: Component) -> Selection:
        """See `Policy`."""
        return Selection()


class Trains(Policy, abstract=True):
    """A policy under which something trains."""

    lr_factor: float | None = Field(gt=0, description="this component's learning rate, as a factor of optim.lr")
    lr: float | None = Field(gt=0, description="or the rate itself; lr_factor is null then")
    layer_decay: float = Field(
        gt=0, le=1, description="the last block trains at this rate, each block before it at this factor of the next's"
    )

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if (self.lr is None) == (self.lr_factor is None):
            found = "neither lr nor lr_factor is given" if self.lr is None else "lr and lr_factor are two rates for it"
            raise ValueError(f"{found}; set one of them, and the other to null")
        return self

    def rate(self, peak: float) -> float:
        """The component's peak learning rate where the run's is `peak`."""
        return own_rate(self.lr, self.lr_factor, peak)


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
    """Low-rank adapters on linear layers (Hu et al. 2021, arXiv:2106.09685), the base weights frozen.

    The matrices of a mixture's experts count as linear layers, each with adapters of its own; its router is none, and
    stays frozen.
    """

    rank: int = Field(ge=1, description="columns of the adapter's first matrix")
    alpha: float = Field(gt=0, description="the adapter's output is scaled by alpha / rank")
    dropout: float = Field(ge=0, lt=1, description="on the adapter's input")
    rslora: bool = Field(description="scale by alpha / sqrt(rank) instead (arXiv:2312.03732)")
    dora: bool = Field(description="also train each weight's magnitude (arXiv:2402.09353)")
    bias: bool = Field(
        description="the biases of adapted layers train as well, in place: without its adapter, the model is then no "
        "longer the base"
    )
    targets: str | tuple[str, ...] = Field(
        description="one or several of: all-linear (every linear layer but the output head), attention, mlp, a layer's "
        "own name such as q_proj, a pattern over whole paths such as *.layers.1?.mlp.*"
    )
    exclude: tuple[str, ...] = Field(description="layers left out: by a part of their path, or a pattern over it")
    last_modules: int | None = Field(ge=1, description="of what is chosen, only the last so many layers")
    base: Base | None = Field(
        description="nf4 or int8: this component's linear layers are kept so, below the adapters; bf16: these are, "
        "and the LLM's embedding, whatever the run's precision; null: in that"
    )

    @model_validator(mode="after")
    def _magnitudes_of_what_is_kept(self) -> Self:
        if self.dora and self.base == "int8":
            # PEFT dequantises for the magnitudes, and on a CPU puts back a weight that has lost its scales.
            raise ValueError("dora does not work on a base in int8; take base=nf4 or bf16, or dora=false")
        return self

    def select(self, component: Component) -> Selection:
        """See `Policy`."""
        from torch import nn

        kinds = (nn.Linear, nn.Embedding)
        layers = [
            layer
            for name, module in component.modules.items()
            for layer in ([name] if isinstance(module, kinds) else _own(component.experts, name))
        ]
        wanted = (self.targets,) if isinstance(self.targets, str) else self.targets
        # Embeddings (of places in a tower, too) and the head are never meant by a group, only by their names.
        embeddings = {name for name, module in component.modules.items() if isinstance(module, nn.Embedding)}
        inner = [name for name in layers if name != component.head and name not in embeddings]
        problems: list[str] = []
        chosen: set[str] = set()
        for word in wanted:
            if word in _GROUPS:
                found = [name for name in inner if word == "all-linear" or component.roles.get(name) == word]
            elif _is_pattern(word):
                found = [name for name in inner if fnmatchcase(name, word)]
            else:
                found = [name for name in layers if name.rpartition(".")[2] == word]
            chosen.update(found)
            if not found:
                known = (*_GROUPS, *{name.rpartition(".")[2] for name in layers})
                problems.append(_nothing_found(f"recipe.{component.name}.targets", word, known, inner))
        for word in self.exclude:
            found = [name for name in layers if _is_excluded(name, word)]
            chosen.difference_update(found)
            if not found:
                known = tuple({part for name in layers for part in name.split(".")})
                problems.append(_nothing_found(f"recipe.{component.name}.exclude", word, known, inner))
        ConfigError.raise_if(problems)
        ordered = [name for name in layers if name in chosen]
        if self.last_modules is not None:
            if self.last_modules > len(ordered):
                raise ConfigError(
                    f"recipe.{component.name}.last_modules: {self.last_modules} layers asked for, "
                    f"targets and exclude leave {len(ordered)}"
                )
            ordered = ordered[-self.last_modules :]
        if not ordered:
            raise ConfigError(f"recipe.{component.name}: Lora finds no linear layer to adapt; see targets and exclude")
        self._refuse_one_end(component, ordered)
        experts = tuple(name for name in ordered if name in component.experts)
        self._refuse_what_experts_cannot(component, experts)
        return Selection(adapted=tuple(name for name in ordered if name not in experts), experts=experts)

    def _refuse_what_experts_cannot(self, component: Component, experts: tuple[str, ...]) -> None:
        """PEFT adds an expert's adapter to its weight before the product: there is no input to drop, no magnitude."""
        ConfigError.raise_if(
            f"recipe.{component.name}.{key}: does not work on the experts of a mixture ({experts[0]}, ...), which are "
            f"3-D parameters; leave them out (recipe.{component.name}.exclude=[experts]), or take {key}={without}"
            for key, without in (("dora", "false"), ("dropout", "0"))
            if experts and getattr(self, key)
        )

    @staticmethod
    def _refuse_one_end(component: Component, chosen: list[str]) -> None:
        """An embedding is adapted with its head, as two weights; the head alone may be, and merging then parts them."""
        if component.embedding not in chosen:
            return
        if component.tied:
            raise ConfigError(
                f"recipe.{component.name}.targets: {component.embedding} cannot be adapted: it is one weight with the "
                "head in this model, which two adapters would pull apart; leave it out, or adapt the head alone"
            )
        if component.head not in chosen:
            raise ConfigError(
                f"recipe.{component.name}.targets: {component.embedding} is adapted only together with the head: the "
                "model would read words otherwise than it writes them; add the head's name, or leave it out"
            )


_GROUPS = ("all-linear", "attention", "mlp")


def _is_pattern(word: str) -> bool:
    return any(sign in word for sign in "*?[.")


def _is_excluded(name: str, word: str) -> bool:
    return fnmatchcase(name, word) if _is_pattern(word) else word in name.split(".")


def _nothing_found(key: str, word: str, known: Sequence[str], paths: Sequence[str]) -> str:
    """What to say of a word that names no layer."""
    if _is_pattern(word):
        near = difflib.get_close_matches(word, paths, n=3, cutoff=0.3) or paths[:3]
        return f"{key}: no linear layer's path matches {word!r}; some are: {', '.join(near)}"
    near = difflib.get_close_matches(word, known, n=3) or sorted(known)
    return f"{key}: no linear layer is named {word!r}; near: {', '.join(near)}"


def _own(names: Iterable[str], module: str) -> list[str]:
    return [name for name in names if name.rpartition(".")[0] == module]


def _within(name: str, module: str) -> bool:
    return name.startswith(module + ".")
