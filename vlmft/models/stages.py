"""Which component of a model is at work, in its forward pass and in the backward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vlmft.models.spec import ModelSpec

HEAD = "head"
"""The output embedding, whatever component it belongs to."""


class Stages:
    """Follows a model from component to component.

    Backward, the gradient of a component's output says that it begins, and that of its input that it ends.
    """

    def __init__(self, model: Any, family: ModelSpec) -> None:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        named, head = dict(base.named_modules()), base.get_output_embeddings()
        places = [(path, name) for name, paths in family.component_paths.items() for path in paths]
        self._watched = [(named[path], name) for path, name in places if path in named and named[path] is not head]
        if head is not None:
            self._watched.append((head, HEAD))
        self._inside: list[str] = []
        self._backward: str | None = None

    @property
    def now(self) -> str | None:
        """The component at work; None between them: embedding, masks, loss."""
        return self._inside[-1] if self._inside else self._backward

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow the model while the body runs."""
        handles = []
        for module, name in self._watched:
            handles.append(module.register_forward_pre_hook(self._entered(name), with_kwargs=True))
            handles.append(module.register_forward_hook(self._left(name), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._inside.clear()

    def _entered(self, name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            outer = self._inside[-1] if self._inside else None
            self._when_gradient_comes((args, kwargs), outer)
            self._inside.append(name)

        return hook

    def _left(self, name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            self._inside.pop()
            self._when_gradient_comes(output, name)

        return hook

    def _when_gradient_comes(self, values: Any, stage: str | None) -> None:
        from torch import Tensor
        from torch.utils._pytree import tree_iter

        def hook(gradient: Any) -> None:
            self._backward = stage

        for value in tree_iter(values):
            if isinstance(value, Tensor) and value.requires_grad:
                value.register_hook(hook)
