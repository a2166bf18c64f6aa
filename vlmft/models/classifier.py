"""A head on a vision-language model's hidden states. B = samples, S = tokens, D = hidden size, C = classes."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vlmft.models.heads import HeadSpec, Pooling

if TYPE_CHECKING:
    from torch import Tensor


class Head(nn.Module):
    """Logits of the classes from one hidden state a sample, in float32.

    The last layer begins at 0: before the first step every class is as likely as any other.
    """

    def __init__(self, spec: HeadSpec, hidden_size: int, num_classes: int) -> None:
        super().__init__()
        widths = (hidden_size, *spec.widths, num_classes)
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
            if number:
                layers.append(nn.GELU())
            layers += [nn.Dropout(spec.dropout), nn.Linear(before, after, dtype=torch.float32)]
        self.layers = nn.Sequential(*layers)
        last = layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, pooled: "Tensor") -> "Tensor":
        """[B, D] -> [B, C]."""
        with torch.autocast(pooled.device.type, enabled=False):
            logits: Tensor = self.layers(pooled.float())
        return logits


class Classifier(nn.Module):
    """A model without its LM head, and a classification head instead.

    Args:
        model: with a recipe applied, wrapped by PEFT or not. It is a submodule as it came, so that its weights have
            the names that it gives them, behind `model.`.
        dtype: what is computed in; the head alone stays in float32.
    """

    def __init__(self, model: Any, head: Head, pooling: Pooling, dtype: "torch.dtype") -> None:
        super().__init__()
        self.model = model
        self.head = head
        self.pooling: Pooling = pooling
        self.dtype = dtype
        self.train(model.training)  # a new module says that it trains, whatever is in it

    def forward(self, **inputs: "Tensor") -> "Tensor":
        """The logits [B, C] of a batch, padded on the right or a pack; `inputs` are what the model itself takes."""
        logits: Tensor = self.head(self.pooled(**inputs))
        return logits

    def pooled(self, **inputs: "Tensor") -> "Tensor":
        """What the head sees of each sample, [B, D] in float32."""
        mask = inputs["attention_mask"]
        with torch.autocast(mask.device.type, self.dtype, enabled=self.dtype != torch.float32):
            states = backbone_of(self.model)(**inputs, use_cache=False).last_hidden_state
        return pool(states, mask, self.pooling)

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """As the model's own; transformers' Trainer calls it."""
        self.model.activation_checkpointing_enable(*args, **kwargs)


def backbone_of(model: Any) -> Any:
    """The part of a model that gives hidden states: all of it but its LM head.

    transformers' `base_model` takes the inputs of the whole model, but for `labels` and `logits_to_keep`. Adapters and
    PEFT's copies are modules inside of it.
    """
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return owner.base_model


def hidden_size_of(model: Any) -> int:
    """D of a model, wrapped by PEFT or not."""
    size: int = backbone_of(model).config.get_text_config().hidden_size
    return size


def pool(states: "Tensor", mask: "Tensor", pooling: Pooling) -> "Tensor":
    """One state a sample, [B, D], in float32: the last of its tokens, or the mean or the largest values over them.

    Args:
        states: [B, S, D]; of a pack [1, S, D].
        mask: int [B, S], 1 where a sample has a token, with padding on either side; or a pack's `borders`.
    """
    if mask.dim() == 4:
        return _pool_pack(states[0], mask[0, 0, 0], pooling)
    filled = mask.bool()
    if pooling == "last":
        places = torch.arange(mask.shape[1], device=mask.device)
        last = places.masked_fill(~filled, -1).max(1).values
        return states[torch.arange(len(states), device=states.device), last].float()
    states = states.float()
    if pooling == "mean":
        summed = states.masked_fill(~filled[..., None], 0.0).sum(1)
        return summed / filled.sum(1, keepdim=True)
    return states.masked_fill(~filled[..., None], -torch.inf).max(1).values


def _pool_pack(states: "Tensor", ends: "Tensor", pooling: Pooling) -> "Tensor":
    """As `pool`, of samples that stand end to end: states [S, D], ends [B + 1]."""
    if pooling == "last":
        return states[ends[1:] - 1].float()
    parts = states.float().split(ends.diff().tolist())
    return torch.stack([part.mean(0) if pooling == "mean" else part.max(0).values for part in parts])


def probabilities(logits: "Tensor", multi: bool) -> "Tensor":
    """[B, C] in float64, so that those of a sample add up to 1; of several labels, each class by itself."""
    logits = logits.double()
    return logits.sigmoid() if multi else logits.softmax(-1)


def predicted(found: "Tensor", threshold: float, multi: bool) -> list[tuple[int, ...]]:
    """The predicted classes' numbers of each sample: the likeliest, or all that are at least as likely as `threshold`.

    Args:
        found: [B, C], what `probabilities` gave.
    """
    if not multi:
        return [(number,) for number in found.argmax(-1).tolist()]
    return [tuple(number for number, value in enumerate(row) if value >= threshold) for row in found.tolist()]
