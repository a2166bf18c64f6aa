"""What a recipe comes to on a model: the table that is shown before training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vlmft.models.components import component_of
from vlmft.models.kernels import KernelsInUse, kernels_in_use
from vlmft.models.spec import ModelSpec
from vlmft.recipes.apply import plain_name
from vlmft.recipes.base import num_bytes, num_weights
from vlmft.recipes.groups import learning_rates
from vlmft.recipes.recipe import Recipe


@dataclass(frozen=True)
class ComponentRow:
    """One component of the table."""

    component: str
    policy: str
    parameters: int
    """In the model as it came, without adapters and second copies."""
    trainable: int
    precision: str
    """Of the frozen weights; of the trained ones where nothing is frozen."""
    lr: tuple[float, float]
    """The lowest and the highest rate at which a weight of it trains; (0, 0) where none does."""
    memory_bytes: int
    """Weights, gradients and optimiser state; activations are not in it."""
    copies_bytes: int
    """Of these, what the originals take that are kept beside fully trained weights (PEFT's `modules_to_save`)."""


def component_rows(
    model: Any, recipe: Recipe, family: ModelSpec, lr: float, state_bytes: Callable[[int], int]
) -> list[ComponentRow]:
    """Count `model`, to which `recipe` has been applied.

    Args:
        lr: the optimiser's peak rate.
        state_bytes: the optimiser's state in bytes for a number of trained parameters.
    """
    rates = learning_rates(model, recipe, family, lr)
    rows = []
    for component, policy in recipe.policies(family.component_paths).items():
        own = [
            (name, parameter)
            for name, parameter in model.named_parameters()
            if component_of(plain_name(name), family.component_paths) == component
        ]
        trained = [parameter for _, parameter in own if parameter.requires_grad]
        frozen = [parameter for _, parameter in own if not parameter.requires_grad]
        trainable = sum(parameter.numel() for parameter in trained)
        weights = sum(num_bytes(parameter) for _, parameter in own)
        gradients = sum(parameter.numel() * parameter.element_size() for parameter in trained)
        rows.append(
            ComponentRow(
                component=component,
                policy=describe_policy(policy),
                parameters=sum(num_weights(parameter) for name, parameter in own if not _is_added(name)),
                trainable=trainable,
                precision=_precision(policy, (frozen or trained)[0]),
                lr=_range([rates[name] for name, parameter in own if parameter.requires_grad]),
                memory_bytes=weights + gradients + state_bytes(trainable),
                copies_bytes=sum(num_bytes(parameter) for name, parameter in own if ".original_module." in name),
            )
        )
    return rows


def component_kernels(model: Any, family: ModelSpec) -> KernelsInUse:
    """What each component of `model`, to which a recipe has been applied, is found to compute with."""
    return kernels_in_use(model, lambda name: component_of(plain_name(name), family.component_paths))


def _range(rates: list[float]) -> tuple[float, float]:
    return (min(rates), max(rates)) if rates else (0.0, 0.0)


def _precision(policy: Any, parameter: Any) -> str:
    plain = str(parameter.dtype).removeprefix("torch.")
    return getattr(policy, "base", None) or plain


def describe_policy(policy: Any) -> str:
    """A policy in a word or two: `frozen`, `full`, `lora r=16`."""
    name = type(policy).__name__.lower()
    if hasattr(policy, "rank"):
        kind = "dora" if policy.dora else "rslora" if policy.rslora else name
        return f"{kind} r={policy.rank}"
    return f"{name} k={policy.k}" if hasattr(policy, "k") else name


def _is_added(name: str) -> bool:
    """Whether PEFT brought this parameter: an adapter, or the trained copy beside an original."""
    return ".lora_" in name or ".modules_to_save." in name
