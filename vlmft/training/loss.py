"""What models say of tokens. B = samples, S = tokens, V = vocabulary, K = positions whose logits are computed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlmft.encoding.collate import IGNORED
from vlmft.training.head import chunked_losses

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.hooks import RemovableHandle


def supervised_loss(model: Any, inputs: dict[str, "Tensor"], labels: "Tensor") -> "Tensor":
    """The cross entropy summed over a micro-batch's supervised tokens, in float32.

    A sum, not a mean: the caller divides by the supervised tokens of the whole step over all ranks, so that any cut
    into micro-batches gives the same gradient.
    """
    import torch.nn.functional as F  # noqa: N812 (torch's own convention)

    keep, targets = supervised_places(labels)
    losses = chunked_losses(model, inputs, keep, targets, 1.0)
    if losses is not None:
        return losses.sum()
    logits = model(**inputs, logits_to_keep=keep, use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")


def token_log_probs(
    model: Any, inputs: dict[str, "Tensor"], labels: "Tensor", temperature: float = 1.0
) -> tuple["Tensor", "Tensor"]:
    """The log-probability of each supervised token of a micro-batch, in float32.

    Args:
        labels: int64 [B, S], see `Batch.labels`.
        temperature: what the logits are divided by.

    Returns:
        Log-probabilities [B, K], 0 where a sample is not supervised, and bool [B, K]: where it is. The supervised
        tokens of a sample stand in their order; K are the positions at which any sample is supervised.
    """
    import torch.nn.functional as F  # noqa: N812 (torch's own convention)

    keep, targets = supervised_places(labels)
    losses = chunked_losses(model, inputs, keep, targets, temperature)
    if losses is not None:
        return -losses, targets.ne(IGNORED)
    logits = model(**inputs, logits_to_keep=keep, use_cache=False).logits
    logits = logits.float() / temperature if temperature != 1 else logits.float()
    flat = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return -flat.view(targets.shape), targets.ne(IGNORED)


def supervised_logits(model: Any, inputs: dict[str, "Tensor"], labels: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Logits [B, K, V] and what each is to predict [B, K], `IGNORED` where that sample is not supervised.

    The head only sees the positions at which some sample of the batch is supervised: with 9 % supervised rows, the
    head on all rows costs more memory than the rest of a 7B model's step.
    """
    keep, targets = supervised_places(labels)
    return model(**inputs, logits_to_keep=keep, use_cache=False).logits, targets


def supervised_places(labels: "Tensor") -> tuple["Tensor", "Tensor"]:
    """The positions [K] at which some sample of a micro-batch is supervised, and what each is to predict [B, K]."""
    import torch

    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)  # [B, S]: what position s is to predict
    keep = targets.ne(IGNORED).any(0).nonzero().squeeze(1)
    return keep, targets[:, keep]


def in_rows(values: "Tensor", counts: Sequence[int]) -> "Tensor":
    """What was computed of a pack's supervised tokens, [1, K], with a row for each sample: [B, most], 0 beyond its own.

    Args:
        counts: supervised tokens of each sample.
    """
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence(values[0].split(list(counts)), batch_first=True)


def keep_a_gradient(model: Any) -> "RemovableHandle":
    """Let the logits of every forward pass of `model`, not yet wrapped for ranks, depend on a trained weight.

    Those of a micro-batch of text alone depend on none where the LLM is frozen: there would be nothing to go backward
    through, and other ranks would wait for this one's gradients for ever. They get a zero from the smallest weight.
    It must be added inside of the forward pass: DDP finds there which weights will have a gradient.
    """
    import torch

    trained = min((p for p in model.parameters() if p.requires_grad), key=lambda p: p.numel())

    def hook(module: Any, args: Any, output: Any) -> Any:
        logits = output if isinstance(output, torch.Tensor) else output.logits
        if torch.is_grad_enabled() and not logits.requires_grad:
            logits = logits + 0 * trained.sum()
            if isinstance(output, torch.Tensor):
                return logits
            output.logits = logits
        return output

    handle: RemovableHandle = model.register_forward_hook(hook)
    return handle
