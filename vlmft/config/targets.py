"""Which classes a `_target_` may name.

Resolving a target imports its module, and importing runs code. So the spelled top-level package is
checked before anything is imported, and the class that comes out is checked again: an alias such as
`vlmft.train.os.system` gets past neither.
"""

import importlib
from typing import TypeVar

from vlmft.config.hints import did_you_mean

PACKAGE = "vlmft"
_allowed_packages: set[str] = {PACKAGE}

T = TypeVar("T")


def allow_package(name: str) -> None:
    """Let targets of the package `name` through; called for the packages that a user root declares."""
    _allowed_packages.add(name)


def resolve_target(target: object, base: type[T]) -> type[T]:
    """Return the class that `target` ("package.module.Class") names, a concrete subclass of `base`.

    Raises:
        ValueError: the target is misspelt, outside the allowed packages, or no `base`.
    """
    if not isinstance(target, str) or "." not in target:
        raise ValueError(
            f"_target_ should be a dotted path to a class, such as {PACKAGE}.data.LLaVADataset; found {target!r}"
        )
    top = target.partition(".")[0]
    if top not in _allowed_packages:
        raise ValueError(
            f"_target_ {target!r} is not allowed: targets may come from {', '.join(sorted(_allowed_packages))}; "
            "a user root adds its own packages in root.yaml (packages: [my_project])"
        )
    module_name, _, class_name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"_target_ {target!r} is not allowed: there is no module {error.name!r}") from None
        raise ValueError(f"_target_ {target!r}: {module_name} cannot be imported: {error}") from None
    found = getattr(module, class_name, None)
    if found is None:
        hint = did_you_mean(class_name, dir(module))
        raise ValueError(f"_target_ {target!r}: {module_name} has no {class_name!r}{hint}")
    if (
        not (isinstance(found, type) and issubclass(found, base))
        or found.__module__.partition(".")[0] not in _allowed_packages
    ):
        raise ValueError(f"_target_ {target!r} is not allowed: it is no {base.__name__}")
    return found
