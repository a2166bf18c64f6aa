"""What was trained, merged into its base: a plain transformers model in the base's own dtype.

What did not train stays the base's own, bit for bit; a base that was kept in fewer bits stays as it was kept. An
adapter is added to its weight in float32, and the sum is rounded once; what trained in full is rounded once. PEFT alone
would round the adapter first, and then the sum.
"""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmft.errors import ConfigError
from vlmft.recipes.apply import ADAPTER, apply_recipe, keep_narrow_bases, select
from vlmft.recipes.base import load_base
from vlmft.recipes.dtypes import torch_dtype
from vlmft.recipes.saved import Saved

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class Rounded:
    """What rounding to the base's dtype did to a weight: |rounded - exact| / |exact|, in the Frobenius norm."""

    name: str
    change: float


def load_merged(saved: Saved, device: "torch.device") -> tuple[Any, Rounded | None]:
    """The merged model, and the weight that rounding changed most; None where none was rounded.

    Held in float32 beside the model are one weight at a time, adapters, and what trained in full beside adapters.

    Raises:
        ConfigError: as `open_saved`; or a merged weight is no finite number in the base's dtype.
    """
    model = load_base(saved.family, saved.recipe, torch_dtype(saved.precision), device)
    dtypes = {name: _own_dtype(model, parameter) for name, parameter in _all_parameters(model).items()}
    model.requires_grad_(False)
    rounded: list[Rounded] = []
    if saved.recipe.adapters:
        model = apply_recipe(model, saved.recipe, saved.family, dtype=None)
        saved.fill(model)
        model = _merge_adapters(model.requires_grad_(False), dtypes, rounded)
    else:
        keep_narrow_bases(model, saved.recipe, saved.family, dtype=None)
        full = frozenset[str]().union(*(found.full for found in select(model, saved.recipe, saved.family).values()))
        live = {name: parameter for name, parameter in model.named_parameters() if name in full}
        for name, tensor in saved.trained(live):
            live[name].data = tensor.to(device)
            _round(name, live[name], dtypes[name], rounded)
    _dequantise_all(model)
    for name, parameter in model.named_parameters():
        _round(name, parameter, dtypes[name], rounded)
    return model.eval(), max(rounded, key=lambda found: found.change, default=None)


def dequantise(linear: "nn.Linear") -> "nn.Linear":
    """A linear layer in float32 with the values that a quantised one (bitsandbytes, 4 or 8 bits) computes with.

    Any other layer comes back as it is.
    """
    import torch
    from torch import nn

    if not _is_quantised(linear):
        return linear
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    with torch.device("meta"):
        plain = nn.Linear(linear.in_features, linear.out_features, bias=False)
    weight = dequantize_bnb_weight(linear.weight, getattr(linear, "state", None))
    plain.weight = nn.Parameter(weight.to(torch.float32), requires_grad=False)
    plain.bias = linear.bias
    return plain


def compute_exactly(model: Any) -> None:
    """Dequantise what lies below the adapters of a trained model, in place.

    An int8 layer rounds its inputs as well as its weights (LLM.int8): a merged model, which has no such layers, agrees
    with the trained one only as far as that goes. With this it agrees to its own rounding.
    """
    from peft.tuners.lora import LoraLayer

    for layer in list(model.modules()):
        if isinstance(layer, LoraLayer):
            layer.base_layer = dequantise(layer.base_layer)


def _merge_adapters(model: Any, dtypes: "dict[str, torch.dtype]", rounded: list[Rounded]) -> Any:
    """Merge each adapter of a PEFT model into its weight; returns the model that PEFT has wrapped."""
    from peft.tuners.lora import Embedding, Linear, LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    inner = model.get_base_model()
    for name, layer in list(inner.named_modules()):
        if not isinstance(layer, LoraLayer):
            continue
        if isinstance(layer, ParamWrapper):  # of experts; several parameters of one module are wrapped one in another
            kind, weight = ParamWrapper, layer.get_param()
            name = f"{name.replace('.base_layer', '')}.{layer.parameter_name}"
        else:
            kind = Embedding if isinstance(layer, Embedding) else Linear
            layer.base_layer = dequantise(layer.base_layer)
            weight = _of_its_own(inner, layer.base_layer)
            name = f"{name}.weight"
        weight.data = weight.data.float()
        try:
            kind.merge(layer, safe_merge=True)  # not layer.merge: a quantised layer's own would quantise the sum
        except ValueError as error:
            raise ConfigError(f"{name}: cannot be merged: {error}; train it again, or take an earlier state") from None
        _round(name, weight, dtypes[name], rounded)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        return model.merge_and_unload(adapter_names=[ADAPTER])


def _of_its_own(model: Any, layer: Any) -> "nn.Parameter":
    """The layer's weight; where it is tied to the other end of the LLM, they part: an adapter acts on one end alone."""
    from torch import nn

    weight: nn.Parameter = layer.weight
    if sum(parameter is weight for parameter in _all_parameters(model).values()) > 1:
        weight = layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
    return weight


def _round(name: str, parameter: "nn.Parameter", dtype: "torch.dtype", rounded: list[Rounded]) -> None:
    """Cast a parameter, and note how much this changed it."""
    exact: Tensor = parameter.data
    if not exact.is_floating_point() or exact.dtype == dtype:
        return
    parameter.data = exact.to(dtype)
    error, size = (parameter.data.float() - exact).norm(), exact.norm()
    if not error.isfinite():
        raise ConfigError(
            f"{name}: has values that {str(dtype).removeprefix('torch.')}, the base's dtype, cannot hold (up to "
            f"{exact.abs().max():.3g}); train from a base in bf16 or fp32"
        )
    if error:
        rounded.append(Rounded(name, float(error / size)))


def _dequantise_all(model: Any) -> None:
    """Dequantise what is left quantised, and let the model know of no quantisation, so that it is saved plainly."""
    for name, module in list(model.named_modules()):
        if _is_quantised(module):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, dequantise(module))
    for owner, mark in (
        (model.config, "quantization_config"),
        (model, "hf_quantizer"),
        (model, "is_loaded_in_4bit"),
        (model, "is_loaded_in_8bit"),
        (model, "is_quantized"),
        (model, "quantization_method"),
    ):
        if mark in vars(owner):
            delattr(owner, mark)


def _is_quantised(module: Any) -> bool:
    return type(module).__module__.startswith("bitsandbytes.") and hasattr(module, "in_features")


def _own_dtype(model: Any, parameter: "Tensor") -> "torch.dtype":
    dtype: torch.dtype = parameter.dtype if parameter.is_floating_point() else model.config.dtype
    return dtype


def _all_parameters(model: Any) -> "dict[str, nn.Parameter]":
    """By every name, so that a tied weight is there twice."""
    return dict(model.named_parameters(remove_duplicate=False))
