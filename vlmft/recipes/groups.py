"""Optimiser groups: every trained parameter is in exactly one, with its own rate and decay."""

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from vlmft.errors import ConfigError
from vlmft.models.components import blocks_of, component_of, normalisation_modules
from vlmft.models.spec import ModelSpec
from vlmft.recipes.apply import plain_name
from vlmft.recipes.policies import Trains
from vlmft.recipes.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn


def parameter_groups(
    model: Any, recipe: Recipe, family: ModelSpec, lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """torch.optim groups, the highest rate first.

    Each has `params`, `names`, `component`, `lr`, `weight_decay`, and `is_matrix`: whether its weights are matrices of
    hidden layers, which some optimisers (Muon) treat apart. Biases, normalisation layers and other vectors take no
    decay.

    Raises:
        ConfigError: of `recipe.rates`, two match one weight, or one matches none.
    """
    rates = learning_rates(model, recipe, family, lr)
    in_norms = {id(parameter) for _, norm in normalisation_modules(model) for parameter in norm.parameters()}
    ends = {id(end.weight) for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None}
    members: dict[tuple[str, float, bool, bool], list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            component = component_of(plain_name(name), family.component_paths)
            decays = parameter.ndim > 1 and id(parameter) not in in_norms
            is_matrix = parameter.ndim == 2 and decays and id(parameter) not in ends and ".lora_embedding" not in name
            members[component, rates[name], decays, is_matrix].append((name, parameter))
    groups = [
        {
            "params": [parameter for _, parameter in named],
            "names": [name for name, _ in named],
            "component": component,
            "lr": rate,
            "weight_decay": weight_decay if decays else 0.0,
            "is_matrix": is_matrix,
        }
        for (component, rate, decays, is_matrix), named in members.items()
    ]
    return sorted(groups, key=lambda group: -group["lr"])


def learning_rates(model: Any, recipe: Recipe, family: ModelSpec, lr: float) -> dict[str, float]:
    """The peak rate of each trained parameter, by its live name.

    Raises:
        ConfigError: of `recipe.rates`, two match one weight, or one matches none.
    """
    policies = recipe.policies(family.component_paths)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    rates: dict[str, float] = {}
    unused = {rate.match for rate in recipe.rates}
    problems: list[str] = []
    for name in trained:
        plain = plain_name(name)
        own = [rate for rate in recipe.rates if re.search(rate.match, plain)]
        unused.difference_update(rate.match for rate in own)
        if len(own) > 1:
            two = " and ".join(repr(rate.match) for rate in own[:2])
            problems.append(f"recipe.rates: {two} are two rates for {plain}; make one of them match less")
        component = component_of(plain, family.component_paths)
        policy = policies[component]
        if own:
            rates[name] = own[0].rate(lr)
        elif isinstance(policy, Trains):
            rates[name] = policy.rate(lr) * policy.layer_decay ** _depth(model, family, component, plain)
    names = ", ".join(plain_name(name) for name in trained[:3])
    problems += [f"recipe.rates: {match!r} matches no trained weight; some are {names}" for match in sorted(unused)]
    ConfigError.raise_if(problems[:10])
    return rates


def _depth(model: Any, family: ModelSpec, component: str, name: str) -> int:
    """How many blocks stand between a weight and its component's end: 0 in the last one and behind it.

    What is in no block of a component that has some lies before them (an embedding) or behind them (a last norm): the
    order of the component's weights tells.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    blocks = blocks_of(base, family.block_paths.get(component))
    if not blocks:
        return 0
    for behind, block in enumerate(reversed(blocks)):
        if name.startswith(block + "."):
            return behind
    names = [plain_name(other) for other, _ in base.named_parameters()]
    first_block = next(number for number, other in enumerate(names) if other.startswith(blocks[0] + "."))
    return len(blocks) if name in names[:first_block] else 0
