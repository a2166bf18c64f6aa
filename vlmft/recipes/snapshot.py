"""The trained model's weights as they are now, for whoever else is to compute with them; nothing of it changes."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft.errors import ConfigError
from vlmft.recipes.apply import plain_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def write_adapter(folder: Path, model: Any) -> None:
    """Write the adapter of a PEFT model in PEFT's own form."""
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def write_checkpoint(folder: Path, model: Any, dtype: "torch.dtype") -> None:
    """Write every weight, adapters merged, in `dtype` and under the checkpoint's own names; with its config.

    A merged weight is computed in float32 and rounded once; one at a time is held beside the model, and all of them in
    the machine's memory.

    Raises:
        ConfigError: an adapter cannot be merged.
    """
    from transformers import GenerationConfig

    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own, owner.generation_config = owner.generation_config, GenerationConfig()  # its own may be one that is not written
    try:
        owner.save_pretrained(folder, state_dict=dict(merged_weights(model, dtype)))
    finally:
        owner.generation_config = own


def merged_weights(model: Any, dtype: "torch.dtype") -> "Iterator[tuple[str, Tensor]]":
    """Each weight by its name in the unwrapped model; those that had to be computed or cast lie on the CPU.

    Raises:
        ConfigError: an adapter cannot be merged.
    """
    from peft.tuners.lora import LoraLayer

    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    merged: dict[str, Tensor] = {}
    for path, layer in owner.named_modules():
        if isinstance(layer, LoraLayer):
            merged |= {f"{path}.{name}": value for name, value in _merged(path, layer, owner).items()}
    for name, parameter in owner.named_parameters(remove_duplicate=False):
        plain = plain_name(name)
        if ".original_module." in name or "lora_" in name:
            continue
        weight = merged.get(plain, parameter.detach())
        kept = not weight.is_floating_point() or weight.dtype == dtype
        yield plain, weight if kept else weight.to(device="cpu", dtype=dtype)
    saved = owner.state_dict().keys()
    yield from ((plain_name(name), buffer.detach()) for name, buffer in owner.named_buffers() if name in saved)


def _merged(path: str, layer: Any, owner: Any) -> "dict[str, Tensor]":
    """What `layer` computes with, float32 on the CPU; the layer is left as it was, to the bit."""
    import torch
    from peft.tuners.lora.layer import ParamWrapper

    if isinstance(layer, ParamWrapper):
        raise ConfigError(f"{path}: adapters of experts are not merged while training; exclude them from recipe.llm")
    base = layer.get_base_layer()
    if sum(parameter is base.weight for _, parameter in owner.named_parameters(remove_duplicate=False)) > 1:
        raise ConfigError(f"{path}: its weight is tied to the other end of the LLM, so that it cannot be merged alone")
    held = {name: parameter.data for name, parameter in base.named_parameters(recurse=False)}
    try:
        with torch.no_grad():
            for name, parameter in base.named_parameters(recurse=False):
                parameter.data = held[name].float().clone()
            layer.merge(safe_merge=True)
            return {name: parameter.data.cpu() for name, parameter in base.named_parameters(recurse=False)}
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be merged: {error}") from None
    finally:
        for name, parameter in base.named_parameters(recurse=False):
            parameter.data = held[name]
        layer.merged_adapters.clear()
