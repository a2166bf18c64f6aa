"""Optimiser groups: every trained parameter is in exactly one, with its component's rate and its own decay."""

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from vlmft.models.components import component_of, normalisation_modules
from vlmft.models.spec import ModelSpec
from vlmft.recipes.apply import plain_name
from vlmft.recipes.policies import Policy, Trains
from vlmft.recipes.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn


def parameter_groups(
    model: Any, recipe: Recipe, family: ModelSpec, lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """torch.optim groups, the highest rate first: `params`, `names`, `component`, `lr`, `weight_decay`.

    Biases, normalisation layers and other vectors take no decay.
    """
    policies = recipe.policies(family.component_paths)
    in_norms = {id(parameter) for _, norm in normalisation_modules(model) for parameter in norm.parameters()}
    members: dict[tuple[str, bool], list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and id(parameter) not in in_norms
            members[component_of(plain_name(name), family.component_paths), decays].append((name, parameter))
    groups = [
        {
            "params": [parameter for _, parameter in named],
            "names": [name for name, _ in named],
            "component": component,
            "lr": lr * learning_rate_factor(policies[component]),
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (component, decays), named in members.items()
    ]
    return sorted(groups, key=lambda group: -group["lr"])


def learning_rate_factor(policy: Policy) -> float:
    """The factor of optim.lr with which a component trains; 0 where it does not."""
    return policy.lr_factor if isinstance(policy, Trains) else 0.0
