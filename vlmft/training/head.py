"""Head and cross entropy in chunks of supervised rows, so that logits never stand in memory all at once.

The model's own forward pass stays the entry, as ranks and adapters need it: for one pass, its head answers with losses
in place of logits. Each chunk's logits are computed again in the backward pass. B = samples, K = positions, D = width,
V = vocabulary, R = supervised rows.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vlmft.encoding.collate import IGNORED

if TYPE_CHECKING:
    from torch import Tensor, nn

CHUNK_BYTES = 2**28
"""Of a chunk's logits in float32. Where all of them take less, they are computed at once."""

_DOES_MORE: set[type] = set()
"""Classes of models that change what their head gives, found by trying."""


def chunked_losses(
    model: Any, inputs: dict[str, "Tensor"], keep: "Tensor", targets: "Tensor", temperature: float
) -> "Tensor | None":
    """The negative log-likelihood of each target, float32 [B, K], 0 at `IGNORED`; None where logits are to be had.

    That is where they are few, where the head's weights are sharded over ranks, and where the model does more to
    logits than its head does (a soft cap, a scale).

    Args:
        keep: the positions [K].
        targets: int64 [B, K], what each is to predict.
        temperature: what the logits are divided by.
    """
    inner = model.module if hasattr(model, "module") else model
    base = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    head: Any = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    vocabulary = getattr(head, "out_features", None)
    if vocabulary is None or type(base) in _DOES_MORE or 4 * vocabulary * targets.numel() <= CHUNK_BYTES:
        return None
    if any(hasattr(p, "ds_id") or hasattr(p, "device_mesh") for p in head.parameters()):
        return None
    rows = max(1, CHUNK_BYTES // (4 * vocabulary))
    with _answering(head, inner, targets, temperature, rows) as answer:
        losses: Tensor = model(**inputs, logits_to_keep=keep, use_cache=False).logits
    if not answer.is_last:
        _DOES_MORE.add(type(base))
        return None
    return losses.squeeze(-1)


class _Answer:
    """Whether what the head gave is what the model gave."""

    losses: "Tensor | None" = None
    is_last = False


@contextlib.contextmanager
def _answering(head: Any, inner: "nn.Module", targets: "Tensor", temperature: float, rows: int) -> Iterator[_Answer]:
    """Let the head answer with losses [B, K, 1]."""
    answer, plain, own = _Answer(), head.forward, head.__dict__.get("forward")

    def forward(hidden: "Tensor") -> "Tensor":
        answer.losses = _losses(plain, hidden, targets, temperature, rows)
        return answer.losses

    def look(module: Any, args: Any, output: Any) -> None:
        found = output if hasattr(output, "dtype") else output.logits
        answer.is_last = found is answer.losses

    handle = inner.register_forward_hook(look, prepend=True)
    head.forward = forward
    try:
        yield answer
    finally:
        handle.remove()
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
