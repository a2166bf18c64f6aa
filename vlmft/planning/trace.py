"""One optimiser step on hollow tensors: forward, backward and update, with the bytes that are alive at each moment."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlmft.models.spec import ModelSpec
from vlmft.models.stages import HEAD as STAGE_OF_HEAD
from vlmft.models.stages import Stages
from vlmft.planning.live import LiveBytes

if TYPE_CHECKING:
    from vlmft.encoding.collate import Collator
    from vlmft.encoding.encoder import Encoded

BATCH, HEAD, TEMPORARY = "batch of media", "head and loss", "temporary in backward"
WEIGHTS, QUANTISED, ADDED = "weights", "quantised base", "adapters and second copies"
GRADIENTS, BUCKETS, OPTIMISER = "gradients", "gradients in transit", "optimiser"
ACTIVATIONS = "activations, "


@dataclass(frozen=True)
class Traced:
    """What one step took at its peak."""

    peak: int
    parts: dict[str, int]
    """Bytes by part at the peak; they add up to it."""
    after_forward: int
    """Bytes that are alive when the backward pass begins."""

    def of(self, *parts: str) -> int:
        """The bytes of some parts."""
        return sum(self.parts.get(part, 0) for part in parts)


class Stage:
    """Which part of a step is under way: a component of the model while it computes, else the phase."""

    def __init__(self, model: Any, family: ModelSpec) -> None:
        self.phase = BATCH
        self.components = Stages(model, family)

    def __call__(self) -> str:
        """The part that what is made now belongs to."""
        component = self.components.now
        if component is None or self.phase in (TEMPORARY, OPTIMISER):
            return self.phase
        return HEAD if component == STAGE_OF_HEAD else ACTIVATIONS + component


def trace_step(
    model: Any,
    optimizer: torch.optim.Optimizer | None,
    family: ModelSpec,
    collator: "Collator",
    units: "Sequence[Encoded]",
    loss_of: Callable[[Any, dict[str, Tensor], Tensor], Tensor],
    gradients_there: bool = False,
    extra: dict[str, int] | None = None,
) -> Traced:
    """Trace one micro-batch and the optimiser's update, whose state is there already.

    Args:
        model: hollow or real, in train mode.
        gradients_there: the micro-batch is not its step's first, so that each trained weight has a gradient already.
        optimizer: None where its update is not traced; its state's bytes are then among `extra`.
        extra: bytes that are alive all the time, by part.
    """
    stage = Stage(model, family)
    live = LiveBytes(stage)
    for part, size in (extra or {}).items():
        live.hold_bytes(part, size)
    for name, parameter in model.named_parameters():
        live.hold([parameter], _kind(name, parameter))
    live.hold(model.buffers(), WEIGHTS)
    if optimizer is not None:
        for state in optimizer.state.values():
            live.hold([value for value in state.values() if isinstance(value, Tensor)], OPTIMISER)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained if gradients_there else ():
        parameter.grad = torch.zeros_like(parameter)
        live.hold([parameter.grad], GRADIENTS)
    handles = [
        parameter.register_post_accumulate_grad_hook(lambda p: live.move(p.grad, GRADIENTS)) for parameter in trained
    ]
    with live, stage.components.watching():
        inputs, labels = collator.for_loss(units, model)
        stage.phase = ACTIVATIONS + "llm"  # what lies between its components: embeddings, positions, masks
        model_is_done = model.register_forward_hook(lambda *_: setattr(stage, "phase", HEAD))
        loss = loss_of(model, inputs, labels)
        model_is_done.remove()
        stage.phase = TEMPORARY
        del inputs, labels
        after_forward = live.alive
        loss.backward()
        del loss
        stage.phase = OPTIMISER
        if optimizer is not None:
            optimizer.step()
    for handle in handles:
        handle.remove()
    model.zero_grad(set_to_none=True)
    return Traced(live.peak, {part: size for part, size in live.at_peak.items() if size}, after_forward)


def _kind(name: str, parameter: Tensor) -> str:
    if ".lora_" in name or ".modules_to_save." in name:
        return ADDED
    return WEIGHTS if parameter.dtype.is_floating_point else QUANTISED
