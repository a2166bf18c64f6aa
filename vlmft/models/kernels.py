"""Which kernels a model computes with: Liger's where they are wanted and work, and what is found in use afterwards.

Liger replaces the forward of some modules, and functions of the module's file, such as the one that rotates queries and
keys. It reports nothing, and leaves a class that it does not know as it is: what is in use is what the modules show.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vlmft.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

Kernels = Literal["auto", "liger", "none"]

ROTARY = "rotary positions"
_LIGER = "liger_kernel"
# vlmft's loss takes logits and sums in its own way; a forward that joins head and loss would not be asked for one.
_OF_THE_LOSS = {"cross_entropy": False, "fused_linear_cross_entropy": False}


@dataclass(frozen=True)
class KernelsInUse:
    """What a model computes with, by component; a component stands where it has any."""

    attention: dict[str, tuple[str, ...]]
    """Attention implementations, under transformers' names."""
    fused: dict[str, tuple[str, ...]]
    """Liger's kernels, by the names of its classes, and `ROTARY`."""


def use_kernels(model: Any, wanted: Kernels) -> str | None:
    """Give a loaded model, before adapters are put around its layers, the kernels that are wanted.

    Returns:
        Why Liger's are not in use, where `wanted` is `auto` and they are not; else None.

    Raises:
        ConfigError: `liger` is wanted and cannot be had; or it has failed when part of the model was changed.
    """
    if wanted == "none":
        return None
    reason = _why_not(model)
    if reason is not None and wanted == "liger":
        raise ConfigError(f"model.kernels: liger is not to be had: {reason}; take kernels=auto or none")
    return reason


def _why_not(model: Any) -> str | None:
    """Put Liger's kernels into `model`; what stands in the way, or None where they are in it."""
    from transformers.integrations.liger import apply_liger_kernel
    from transformers.utils import is_liger_kernel_available

    if not is_liger_kernel_available():
        return "liger-kernel is not installed (pip install liger-kernel)"
    if model.device.type != "cuda":
        return f"its kernels need a CUDA device, and this model is on {model.device.type}"
    kind = type(model).__name__
    try:
        apply_liger_kernel(model, _OF_THE_LOSS)
    except (ImportError, AttributeError, TypeError) as error:  # what it says of a class that has changed under it
        if changed := sorted({name for _, name in _fused(model)}):
            raise ConfigError(
                f"model.kernels: {_release()} fails on {kind} after it has put {', '.join(changed)} into it: {error}; "
                "take kernels=none"
            ) from error
        return f"{_release()} fails on {kind}: {error}"
    if not any(True for _ in _fused(model)):
        return f"{_release()} knows no {kind}, and has changed nothing in it"
    return None


def _release() -> str:
    from importlib.metadata import version

    return f"liger-kernel {version('liger-kernel')} with transformers {version('transformers')}"


def kernels_in_use(model: Any, component: Callable[[str], str]) -> KernelsInUse:
    """Look at the modules of a model, wrapped in adapters or not.

    Args:
        component: gives the component of a module, by its name in the unwrapped model or as adapters changed it.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    attention: dict[str, set[str]] = {}
    fused: dict[str, set[str]] = {}
    for name, implementation in attention_modules(base):
        attention.setdefault(component(name), set()).add(implementation)
    for name, kernel in _fused(base):
        fused.setdefault(component(name), set()).add(kernel)
    return KernelsInUse(*({key: tuple(sorted(names)) for key, names in found.items()} for found in (attention, fused)))


def attention_modules(model: "nn.Module") -> Iterator[tuple[str, str]]:
    """Each attention module with what it asks transformers for; `own` where it computes by itself."""
    for name, module in model.named_modules():
        if type(module).__name__.endswith("Attention"):
            asks = "ALL_ATTENTION_FUNCTIONS" in _names(inspect.unwrap(module.forward))
            yield name, module.config._attn_implementation if asks else "own"


def _fused(model: "nn.Module") -> Iterator[tuple[str, str]]:
    """Each module that computes with one of Liger's kernels, with the kernel's name."""
    for name, module in model.named_modules():
        if not name:
            continue  # the model's own forward: the loss, which is not asked for
        forward = inspect.unwrap(module.forward)
        if _is_ligers(forward):
            yield name, forward.__qualname__.partition(".")[0]
        if any(map(_is_ligers, _rotations(forward))):
            yield name, ROTARY


def _rotations(forward: Any) -> list[Any]:
    """The functions that a forward calls to rotate queries and keys, as they stand in its file now.

    Liger also sets names that no code of this transformers reads any more: only what is called counts.
    """
    called = [name for name in _names(forward) if "rotary_pos_emb" in name]
    return [forward.__globals__[name] for name in called if name in forward.__globals__]


def _names(function: Any) -> tuple[str, ...]:
    """What a function's code reads of its file, and of other objects by attribute; nothing for what is not Python's."""
    code = getattr(function, "__code__", None)
    return code.co_names if code is not None else ()


def _is_ligers(function: Any) -> bool:
    return (getattr(function, "__module__", None) or "").partition(".")[0] == _LIGER
