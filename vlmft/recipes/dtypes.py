"""The precision a run computes in."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from vlmft.models.spec import Precision


def torch_dtype(precision: "Precision") -> "torch.dtype":
    """The dtype of a precision."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]


def compute_in(model: Any, dtype: "torch.dtype", device: "torch.device") -> None:
    """Run `model`'s forward and generate under autocast to `dtype`; float32 needs none.

    Trained weights are float32 beside frozen ones of `dtype`. This makes a loaded model compute what the training
    one did, so that it answers alike to the bit. `generate` has pictures seen before, and outside of, the forward.
    """
    import torch

    if dtype == torch.float32:
        return
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if inner is not model:
        _take_inputs_as_they_come(inner)
    inner.forward = torch.autocast(device.type, dtype)(inner.forward)
    inner.generate = torch.autocast(device.type, dtype)(inner.generate)


def _take_inputs_as_they_come(model: Any) -> None:
    """Keep PEFT from making a float32 copy of each adapted layer's input, which autocast turns back at once.

    The copy is to match the adapters' float32 weights, which autocast casts as well. The results are the same to the
    bit. DoRA computes with its input outside of a linear layer, and keeps the copy.
    """
    from peft.tuners.lora import Linear

    for layer in model.modules():
        if isinstance(layer, Linear) and not any(layer.use_dora.values()):
            layer.cast_input_dtype_enabled = False
