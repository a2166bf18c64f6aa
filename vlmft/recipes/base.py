"""The base model under a recipe: loaded as it is, or with some components quantised."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vlmft.errors import ConfigError
from vlmft.models.spec import ModelSpec
from vlmft.recipes.apply import components_of
from vlmft.recipes.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn


# On a processor with AVX512-BF16, bitsandbytes repacks a 4-bit weight in place at the first answer in eval mode: with
# coarser scales, and into a form whose product passes no gradient on. The base would change, and training stand still.
_REPACKS = "support_avx512bf16_for_cpu"


def load_base(family: ModelSpec, recipe: Recipe, dtype: "torch.dtype", device: "torch.device") -> Any:
    """Load the checkpoint on `device`; where the recipe says so, components' linear layers become nf4 or int8.

    Each weight is quantised as it is read, so the unquantised model never lies in memory as a whole.

    Args:
        dtype: what quantised layers compute in.

    Raises:
        ConfigError: bitsandbytes is missing, a component's experts cannot be quantised, or the checkpoint cannot be
            read.
    """
    bases = recipe.quantised
    model = family.load_model(device, _quantization(family, bases, dtype) if bases else None)
    for module in model.modules():
        if hasattr(module, _REPACKS):
            setattr(module, _REPACKS, False)
    return model


def _quantization(family: ModelSpec, bases: Mapping[str, str], dtype: "torch.dtype") -> Any:
    """transformers' settings that quantise the linear layers of the components in `bases`, their head aside."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"a quantised base needs bitsandbytes ({error}): pip install 'vlmft[quant]'") from None
    import torch
    from torch import nn
    from transformers import BitsAndBytesConfig

    components = components_of(family.skeleton(), family)
    ConfigError.raise_if(
        f"recipe.{name}.base: {base} keeps linear layers alone; the experts of this mixture ({experts[0]}, ...) are "
        f"3-D parameters, which bitsandbytes would leave as they are; take base=null, and precision=bf16 for half of "
        "fp32's memory"
        for name, base in bases.items()
        if (experts := components[name].experts)
    )
    kept = [
        name
        for component in components.values()
        for name, module in component.modules.items()
        if isinstance(module, nn.Linear) and (component.name not in bases or name == component.head)
    ]
    if "nf4" in bases.values():
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=torch.uint8,
            llm_int8_skip_modules=kept,
        )
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)


def num_weights(parameter: "nn.Parameter") -> int:
    """How many weights a parameter holds; a 4-bit one packs two into a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def num_bytes(parameter: "nn.Parameter") -> int:
    """What a parameter takes, with the scales of a quantised one."""
    size = parameter.numel() * parameter.element_size()
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        nested = state.state2
        scales = [state.absmax] + ([nested.absmax] if nested is not None else [])
        size += sum(scale.numel() * scale.element_size() for scale in scales)
    return size
