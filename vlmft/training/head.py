"""Head and cross entropy in chunks of supervised rows, so that logits never stand in memory all at once.

The model's own forward pass stays the entry, as ranks and adapters need it: for one pass, its head answers with losses
in place of logits. Each chunk's logits are computed again in the backward pass. B = samples, K = positions, D = width,
V = vocabulary, R = supervised rows.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from vlmft.encoding.collate import IGNORED

if TYPE_CHECKING:
    from torch import Tensor, nn

CHUNK_BYTES = 2**28
"""Of a chunk's logits in float32. Where all of them take less, they are computed at once."""

_IN_CHUNKS = ContextVar("in_chunks", default=True)

_GIVES_ITS_HEADS: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()
"""Whether a model gives what its head gives, found by trying."""


@contextlib.contextmanager
def head_at_once() -> Iterator[None]:
    """Within this, `chunked_losses` leaves logits to the model: nothing is computed twice."""
    before = _IN_CHUNKS.set(False)
    try:
        yield
    finally:
        _IN_CHUNKS.reset(before)


def chunked_losses(
    model: Any, inputs: dict[str, "Tensor"], keep: "Tensor", targets: "Tensor", temperature: float
) -> "Tensor | None":
    """The negative log-likelihood of each target, float32 [B, K], 0 at `IGNORED`; None where logits are to be had.

    That is where they are few, within `head_at_once`, where the head's weights are sharded over ranks, and where the
    model does more to logits than its head does (a soft cap, a scale).

    Args:
        keep: the positions [K].
        targets: int64 [B, K], what each is to predict.
        temperature: what the logits are divided by.
    """
    if not _IN_CHUNKS.get():
        return None
    _, head = _base_and_head(model)
    vocabulary = getattr(head, "out_features", None)
    if vocabulary is None or 4 * vocabulary * targets.numel() <= CHUNK_BYTES:
        return None
    if not gives_its_heads(model, inputs, keep):
        return None
    rows = max(1, CHUNK_BYTES // (4 * vocabulary))
    with _answering(head, lambda plain, hidden: _losses(plain, hidden, targets, temperature, rows)):
        losses: Tensor = model(**inputs, logits_to_keep=keep, use_cache=False).logits
    return losses.squeeze(-1)


def gives_its_heads(model: Any, inputs: dict[str, "Tensor"], keep: "Tensor") -> bool:
    """Whether what a model gives is what its head gives, and the head's weights are whole; tried once a model.

    The trial is a forward pass without gradients of the model that is wrapped for ranks, not of the wrapper: ranks
    need not try in the same micro-batch, and none waits for another. It draws nothing from the run's random stream.
    """
    base, head = _base_and_head(model)
    if head is None or any(hasattr(p, "ds_id") or hasattr(p, "device_mesh") for p in head.parameters()):
        return False
    if base not in _GIVES_ITS_HEADS:
        _GIVES_ITS_HEADS[base] = _try(_unwrapped(model), head, inputs, keep)
    return _GIVES_ITS_HEADS[base]


def _unwrapped(model: Any) -> Any:
    return model.module if hasattr(model, "module") else model


def _base_and_head(model: Any) -> tuple[Any, Any]:
    """The model without what ranks and adapters put around it, and its head; None where it has none."""
    inner = _unwrapped(model)
    base = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    return base, base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None


def _try(inner: "nn.Module", head: Any, inputs: dict[str, "Tensor"], keep: "Tensor") -> bool:
    """Whether the output of `inner` is its head's very tensor."""
    import torch

    given: list[Tensor] = []
    found: list[Tensor] = []

    def answer(plain: Any, hidden: "Tensor") -> "Tensor":
        given.append(torch.zeros(*hidden.shape[:-1], 1, device=hidden.device))
        return given[-1]

    def look(module: Any, args: Any, output: Any) -> None:
        found.append(output if hasattr(output, "dtype") else output.logits)

    handle = inner.register_forward_hook(look, prepend=True)  # before the one that adds a zero (`keep_a_gradient`)
    devices = [keep.device] if keep.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices), _answering(head, answer):
            inner(**inputs, logits_to_keep=keep, use_cache=False)
    finally:
        handle.remove()
        torch.clear_autocast_cache()  # of weights cast without a gradient
    return found[-1] is given[-1]


@contextlib.contextmanager
def _answering(head: Any, answer: "Callable[[Any, Tensor], Tensor]") -> Iterator[None]:
    """Let the head give `answer` of its own forward function and hidden states."""
    plain, own = head.forward, head.__dict__.get("forward")
    head.forward = lambda hidden: answer(plain, hidden)
    try:
        yield
    finally:
        if own is None:
            del head.forward
        else:
            head.forward = own


def _losses(head: Any, hidden: "Tensor", targets: "Tensor", temperature: float, rows: int) -> "Tensor":
    """Losses [B, K, 1] of hidden states [B, K, D], of which `rows` supervised ones go through the head at once."""
    import torch
    import torch.nn.functional as F  # noqa: N812 (torch's own convention)
    from torch.utils.checkpoint import checkpoint

    def part(some: "Tensor", wanted: "Tensor") -> "Tensor":
        logits = head(some).float()
        return F.cross_entropy(logits / temperature if temperature != 1 else logits, wanted, reduction="none")

    flat = targets.flatten()
    supervised = flat.ne(IGNORED).nonzero().squeeze(1)  # [R]
    states = hidden.flatten(0, 1).index_select(0, supervised)
    parts = zip(states.split(rows), flat[supervised].split(rows), strict=True)
    found = [checkpoint(part, *each, use_reentrant=False) for each in parts]
    losses = torch.zeros(flat.shape, device=hidden.device).index_put((supervised,), torch.cat(found))
    return losses.view(*targets.shape, 1)
