"""The reference of a preference or reward trainer: the model as it stood when the run began.

That is the checkpoint, or with `model.adapter` what was continued from; whatever trains (projector, norms, tower) is
at its start value in it. `StartValues` holds those values, `originals` has PEFT's own instead. It never drops out.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch


class StartValues:
    """The values that a model's trained tensors have now, to be put back in for a while.

    Works under every recipe, and costs the trained tensors once more in memory. Make it before a checkpoint is
    restored: the start of the run is what counts.

    Args:
        model: with its recipe applied, unwrapped or wrapped.
    """

    def __init__(self, model: Any) -> None:
        self._held = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad]

    @contextmanager
    def put_in(self) -> Iterator[None]:
        """The trained tensors have their start values while the body runs; no gradient is taken there.

        Nothing is copied: the two storages change places, so that what the optimiser holds stays as it is.
        """
        trained = [parameter.data for parameter, _ in self._held]
        try:
            for parameter, value in self._held:
                parameter.data = value
            with torch.no_grad():
                yield
        finally:
            for (parameter, _), value in zip(self._held, trained, strict=True):
                parameter.data = value


@contextmanager
def originals(model: Any) -> Iterator[None]:
    """A PEFT model computes with its adapters off and the originals of `modules_to_save`; no gradient is taken.

    PEFT lets every adapter train again when they come back on, those too that the recipe's probe has frozen; each
    weight gets back what it had.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter(), torch.no_grad():
            yield
    finally:
        for parameter, trains in flags:
            parameter.requires_grad_(trains)


@contextmanager
def judging(model: Any) -> Iterator[None]:
    """`model` is in eval mode while the body runs (no dropout), and then in the mode that it came in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def start_of(model: Any, put_in: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """`model` is the reference while the body runs: `put_in` gives it the start's weights, and nothing drops out."""
    with put_in(), judging(model):
        yield
