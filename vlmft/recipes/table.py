"""What a recipe comes to on a model: the table that is shown before training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vlmft.models.components import component_of
from vlmft.models.spec import ModelSpec
from vlmft.recipes.apply import plain_name
from vlmft.recipes.groups import learning_rate_factor
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
    lr: float
    memory_bytes: int
    """Weights, gradients and optimiser state; activations are not in it."""


def component_rows(
    model: Any, recipe: Recipe, family: ModelSpec, lr: float, state_bytes: Callable[[int], int]
) -> list[ComponentRow]:
    """Count `model`, to which `recipe` has been applied.

    Args:
        lr: the optimiser's peak rate.
        state_bytes: the optimiser's state in bytes for a number of trained parameters.
    """
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
        weights = sum(parameter.numel() * parameter.element_size() for _, parameter in own)
        gradients = sum(parameter.numel() * parameter.element_size() for parameter in trained)
        rows.append(
            ComponentRow(
                component=component,
                policy=describe_policy(policy),
                parameters=sum(parameter.numel() for name, parameter in own if not _is_added(name)),
                trainable=trainable,
                precision=str((frozen or trained)[0].dtype).removeprefix("torch."),
                lr=lr * learning_rate_factor(policy),
                memory_bytes=weights + gradients + state_bytes(trainable),
            )
        )
    return rows


def describe_policy(policy: Any) -> str:
    """A policy in a word or two: `frozen`, `full`, `lora r=16`."""
    name = type(policy).__name__.lower()
    if hasattr(policy, "rank"):
        return f"{name} r={policy.rank}"
    return f"{name} k={policy.k}" if hasattr(policy, "k") else name


def _is_added(name: str) -> bool:
    """Whether PEFT brought this parameter: an adapter, or the trained copy beside an original."""
    return ".lora_" in name or ".modules_to_save." in name
