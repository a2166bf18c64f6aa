"""Apply a recipe to a loaded model: freeze, unfreeze, wrap with adapters, set dtypes.

Without adapters, what trains has requires_grad and that is all. With adapters, PEFT wraps the model, and whatever
trains in full beside them lies in PEFT's `modules_to_save`: the original weights stay reachable (a preference
trainer's reference), and saving, merging and continuing are PEFT's own.
"""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vlmft.errors import ConfigError
from vlmft.models.components import blocks_of, component_of, normalisation_modules, parameters_by_component
from vlmft.models.spec import ModelSpec
from vlmft.recipes.policies import Component, Lora, Selection
from vlmft.recipes.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn

logger = logging.getLogger(__name__)

ADAPTER = "default"
PEFT_PREFIX = "base_model.model."


def apply_recipe(model: Any, recipe: Recipe, family: ModelSpec, dtype: "torch.dtype | None") -> Any:
    """Make `model` train what `recipe` says, and nothing else. Returns it, wrapped where the recipe has adapters.

    Trained weights become float32, so that small updates are not rounded away; frozen ones become `dtype`, or stay
    as they are where it is None. Where a component's base is bf16, its linear layers and embeddings become that.

    Raises:
        ConfigError: a policy finds nothing to train, or what trains in full cannot stand beside adapters.
    """
    selections = select(model, recipe, family)
    full = frozenset[str]().union(*(selection.full for selection in selections.values()))
    model.requires_grad_(False)
    narrow = keep_narrow_bases(model, recipe, family, dtype)
    if recipe.adapters:
        model = _wrap(model, recipe, selections, full)
    else:
        for name, parameter in model.named_parameters():
            if name in full:  # of the others, quantised ones have no gradient to switch
                parameter.requires_grad_(True)
    _cast(model, dtype, narrow)
    return model


def select(model: Any, recipe: Recipe, family: ModelSpec) -> dict[str, Selection]:
    """What each component's policy chooses in the unwrapped `model`.

    A parameter that is no module's only one (LLaVA-OneVision's mark after a row) stays frozen beside adapters, and a
    warning says so: PEFT keeps copies of whole modules alone.
    """
    policies = recipe.policies(family.component_paths)
    components = components_of(model, family)
    selections = {name: policy.select(components[name]) for name, policy in policies.items()}
    if not recipe.adapters:
        return selections
    for name, selection in selections.items():
        if bare := selection.full & family.bare_parameters:
            logger.warning("%s stays frozen: PEFT keeps no copy of a bare parameter beside adapters", ", ".join(bare))
            selections[name] = replace(selection, full=selection.full - bare)
    return selections


def components_of(model: Any, family: ModelSpec) -> dict[str, Component]:
    """Describe each component of an unwrapped model."""
    paths = family.component_paths
    parameters = parameters_by_component(model, paths)
    modules: dict[str, dict[str, nn.Module]] = {name: {} for name in paths}
    for name, module in model.named_modules():
        own = {f"{name}.{parameter}" for parameter, _ in module.named_parameters(recurse=False)}
        if own - family.bare_parameters:
            modules[component_of(name, paths)][name] = module
    experts = {name: tuple(n for n, p in own.items() if _is_experts(model, n, p)) for name, own in parameters.items()}
    norms = [name for name, _ in normalisation_modules(model)]
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    head_name = next((name for name, module in model.named_modules() if module is head), None)
    embedding_name = next((name for name, module in model.named_modules() if module is embedding), None)
    tied = head is not None and embedding is not None and head.weight is embedding.weight
    return {
        name: Component(
            name=name,
            parameters=parameters[name],
            modules=modules[name],
            norms=tuple(norm for norm in norms if component_of(norm, paths) == name),
            blocks=blocks_of(model, family.block_paths.get(name)),
            head=head_name if head_name in modules[name] else None,
            embedding=embedding_name if embedding_name in modules[name] else None,
            tied=tied,
            roles={part: role for part in (*modules[name], *experts[name]) if (role := _role(model, part))},
            experts=experts[name],
        )
        for name in paths
    }


def _role(model: Any, name: str) -> str | None:
    """`attention` or `mlp`, by the class of the closest module around it that says so."""
    path = name
    while path := path.rpartition(".")[0]:
        kind = type(model.get_submodule(path)).__name__.lower()
        if "attention" in kind or "deltanet" in kind:  # linear attention bears the name of its rule
            return "attention"
        if any(word in kind for word in ("mlp", "feedforward", "ffn", "experts")):
            return "mlp"
    return None


def _is_experts(model: Any, name: str, parameter: "nn.Parameter") -> bool:
    """By the class of the module it hangs on, which in transformers always ends in Experts."""
    return parameter.ndim == 3 and type(model.get_submodule(name.rpartition(".")[0])).__name__.endswith("Experts")


def _wrap(model: Any, recipe: Recipe, selections: dict[str, Selection], full: frozenset[str]) -> Any:
    from peft import LoraConfig, get_peft_model

    first = next(iter(recipe.adapters.values()))
    config = LoraConfig(
        task_type=None,
        r=first.rank,
        lora_alpha=first.alpha,
        lora_dropout=first.dropout,
        use_rslora=first.rslora,
        use_dora=first.dora,
        bias="lora_only" if first.bias else "none",
        target_modules=[name for selection in selections.values() for name in selection.adapted],
        target_parameters=[name for selection in selections.values() for name in selection.experts] or None,
        rank_pattern=_pattern(recipe, selections, first.rank, lambda policy: policy.rank),
        alpha_pattern=_pattern(recipe, selections, first.alpha, lambda policy: policy.alpha),
        modules_to_save=covering_modules(model, full) or None,
    )
    with _names_as_they_are(), warnings.catch_warnings():
        # PEFT applies a rank of experts' parameters, and says that it did not: it looks for it among modules alone.
        warnings.filterwarnings("ignore", message=r"The following (rank|alpha)_pattern keys .*\.experts\.")
        wrapped = get_peft_model(model, config, adapter_name=ADAPTER, autocast_adapter_dtype=False)
    if first.dora:
        _measure_magnitudes(wrapped)
    return wrapped


@contextmanager
def _names_as_they_are() -> Iterator[None]:
    """Keep PEFT from reading names as those that models had under transformers 4.

    In many mixtures it takes every `gate_proj`, `up_proj` and `down_proj` for an expert's, and a dense layer's or the
    tower's would be left without an adapter. Ours name modules of the model at hand.
    """
    from peft.utils import transformers_weight_conversion as conversion

    renaming = conversion.convert_peft_config_for_transformers
    conversion.convert_peft_config_for_transformers = lambda *args, **kwargs: None
    try:
        yield
    finally:
        conversion.convert_peft_config_for_transformers = renaming


def _measure_magnitudes(model: Any) -> None:
    """Take DoRA's magnitudes in float32: PEFT rounds them to the base's dtype, and the start would not be the base."""
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer) and ADAPTER in layer.lora_A:
            layer.lora_magnitude_vector[ADAPTER].update_layer(
                base_layer=layer.get_base_layer(),
                lora_A=layer.lora_A[ADAPTER].weight.float(),
                lora_B=layer.lora_B[ADAPTER].weight.float(),
                scaling=layer.scaling[ADAPTER],
            )


def _pattern(
    recipe: Recipe, selections: dict[str, Selection], default: float, value: Callable[[Lora], float]
) -> dict[str, Any]:
    """PEFT's per-layer settings: full module names, only where a component differs from the default."""
    return {
        name: value(policy)
        for component, policy in recipe.adapters.items()
        if value(policy) != default
        for name in (*selections[component].adapted, *selections[component].experts)
    }


def covering_modules(model: Any, names: frozenset[str]) -> list[str]:
    """The largest modules whose parameters are exactly some of `names`, together all of them.

    Containers (ModuleList, ...) are never chosen: nothing calls them, so a wrapper around one would not act.

    Raises:
        ConfigError: a parameter of `names` shares its module with one that stays frozen, or its weight is tied.
    """
    from torch import nn

    containers = (nn.ModuleList, nn.ModuleDict)
    chosen: list[str] = []

    def visit(path: str, module: "nn.Module") -> None:
        own = {f"{path}.{name}" if path else name for name, _ in module.named_parameters()}
        if not own & names:
            return
        if path and own <= names and not isinstance(module, containers):
            chosen.append(path)
            return
        if direct := {n for n in own & names if "." not in n.removeprefix(path + ".")}:
            raise ConfigError(f"recipe: {', '.join(sorted(direct))} cannot train alone beside adapters")
        for child_name, child in module.named_children():
            visit(f"{path}.{child_name}" if path else child_name, child)

    visit("", model)
    _refuse_tied(model, chosen)
    return chosen


def _refuse_tied(model: Any, modules: Iterable[str]) -> None:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or embedding is None or head.weight is not embedding.weight:
        return
    for path in modules:
        if any(parameter is head.weight for parameter in model.get_submodule(path).parameters()):
            raise ConfigError(
                f"recipe: {path} cannot train in full beside adapters: its weight is tied to the other end of the LLM, "
                "and PEFT's copy would untie them; give the LLM adapters, or every component full training"
            )


def keep_narrow_bases(model: Any, recipe: Recipe, family: ModelSpec, dtype: "torch.dtype | None") -> set[int]:
    """Make the bases bf16 that the recipe wants so, in an unwrapped model; returns the ids of these weights.

    Args:
        dtype: what is computed in; None where nothing will be.
    """
    wanted = [name for name, base in recipe.bases.items() if base == "bf16"]
    if not wanted:
        return set()
    from vlmft.recipes.narrow import keep_narrow

    components = components_of(model, family)
    return {id(weight) for name in wanted for weight in keep_narrow(components[name], dtype)}


def _cast(model: Any, dtype: "torch.dtype | None", narrow: set[int]) -> None:
    """Trained weights become float32, frozen ones `dtype`; None, or an id in `narrow`, leaves these as they are."""
    import torch

    for parameter in model.parameters():
        if parameter.is_floating_point() and id(parameter) not in narrow:
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else dtype or parameter.dtype)


def plain_name(name: str) -> str:
    """A parameter's name as in the unwrapped model, as far as its component depends on it.

    PEFT's own words can stand anywhere in it: where tower and projector both train in full, one wrapper holds both,
    and the projector is `model.visual.modules_to_save.default.merger`.
    """
    for word in (f".modules_to_save.{ADAPTER}", ".original_module", ".base_layer"):
        name = name.replace(word, "")
    return name.removeprefix(PEFT_PREFIX)
