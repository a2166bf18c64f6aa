"""One vision pass for sequences that hold the same pictures: a pair's two answers, or a prompt's completions."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_FEATURES = ("get_image_features", "get_video_features")
"""Where transformers' models make features of pixels, apart from the text."""


class SharedVision:
    """Lets a model see pictures once that a batch holds several times.

    Args:
        model: as loaded, or wrapped by PEFT or DDP.
    """

    def __init__(self, model: Any) -> None:
        self._seers = [
            (module, name) for module in model.modules() for name in _FEATURES if hasattr(type(module), name)
        ]
        self._times = 1

    @property
    def works(self) -> bool:
        """Whether the model makes its features apart from the text; where it does not, `repeated` changes nothing."""
        return bool(self._seers)

    @contextmanager
    def repeated(self, times: int) -> Iterator[None]:
        """While the body runs, a batch's media are `times` equal blocks, of which only the first is computed.

        Its features stand in for those of the others, so that the gradients of all add up in one backward pass. The
        batch is to be laid out in blocks: all first sequences, then all second ones, each with the media of its own.
        """
        self._times = times
        for module, name in self._seers:
            setattr(module, name, self._once(getattr(module, name)))
        try:
            yield
        finally:
            self._times = 1
            for module, name in self._seers:
                delattr(module, name)

    def _once(self, features: Callable[..., Any]) -> Callable[..., Any]:
        parameters = inspect.signature(features).parameters.values()
        names = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]

        @functools.wraps(features)  # `generate` looks at what it takes
        def computed_once(*args: Any, **kwargs: Any) -> Any:
            times, self._times = self._times, 1  # one of these functions may call another
            try:
                if times == 1:
                    return features(*args, **kwargs)
                args = tuple(_first(value, times) for value in args)
                kwargs |= {name: _first(kwargs[name], times) for name in names if name in kwargs}
                return _tiled(features(*args, **kwargs), times)
            finally:
                self._times = times

        return computed_once


def _first(value: Any, times: int) -> Any:
    """The first of `times` blocks of a tensor. SmolVLM lays a batch's tiles out as one sample's: [1, tiles, ...]."""
    if not isinstance(value, torch.Tensor):
        return value
    axis = 1 if len(value) == 1 else 0
    size, rest = divmod(value.shape[axis], times)
    if rest:
        raise ValueError(f"media of shape {list(value.shape)} are no {times} equal blocks")
    return value.narrow(axis, 0, size)


def _tiled(output: Any, times: int) -> Any:
    """The same output, its features `times` one after the other."""
    output.pooler_output = _tile(output.pooler_output, times)
    if getattr(output, "deepstack_features", None) is not None:
        output.deepstack_features = [_tile(layer, times) for layer in output.deepstack_features]
    return output


def _tile(features: Any, times: int) -> Any:
    """Features of all media in a tensor, or of each medium in a sequence."""
    return torch.cat([features] * times) if isinstance(features, torch.Tensor) else list(features) * times
