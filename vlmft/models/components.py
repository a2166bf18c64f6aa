"""Which component each parameter belongs to."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def component_of(name: str, paths: Mapping[str, tuple[str, ...]]) -> str:
    """The component whose path is the longest prefix of the parameter or module `name`.

    Raises:
        KeyError: no path matches; the family's `component_paths` are incomplete.
    """
    matches = [
        (len(path), component)
        for component, prefixes in paths.items()
        for path in prefixes
        if name == path or name.startswith(path + ".")
    ]
    if not matches:
        raise KeyError(f"{name} belongs to no component: the paths are {dict(paths)}")
    return max(matches)[1]


def parameters_by_component(
    model: "nn.Module", paths: Mapping[str, tuple[str, ...]]
) -> dict[str, dict[str, "nn.Parameter"]]:
    """Every parameter of `model` by component and name; a tied weight counts once, under its first name."""
    found: dict[str, dict[str, nn.Parameter]] = {component: {} for component in paths}
    for name, parameter in model.named_parameters():
        found[component_of(name, paths)][name] = parameter
    return found


def blocks_of(model: "nn.Module", paths: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The names of a component's transformer blocks, in the order of the forward; `paths` as in `block_paths`."""
    paths = (paths,) if isinstance(paths, str) else paths or ()
    return tuple(f"{path}.{number}" for path in paths for number in range(len(model.get_submodule(path))))  # type: ignore[arg-type]


def normalisation_modules(model: "nn.Module") -> Iterable[tuple[str, "nn.Module"]]:
    """Every normalisation layer with its name, found by type.

    torch's own classes by isinstance; a family's RMSNorm variants, which derive from nn.Module alone,
    by their class name, which in transformers always ends in Norm, or NormGated.
    """
    from torch import nn

    torch_norms = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
    for name, module in model.named_modules():
        if isinstance(module, torch_norms) or type(module).__name__.endswith(("Norm", "NormGated")):
            yield name, module
