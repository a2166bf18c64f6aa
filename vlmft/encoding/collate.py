"""Encoded samples -> one Batch, padded or packed.

B = samples, S = tokens of the longest. A pack is one row: B = 1, and S = tokens of all samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from vlmft.encoding.encoder import Encoded
from vlmft.models.packing import borders
from vlmft.models.spec import Media, ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IGNORED = -100
"""A label that the loss skips."""


@dataclass(slots=True)
class Batch:
    """A micro-batch: the family's inputs, still with uint8 pixels, and the labels."""

    inputs: dict[str, "Tensor"]
    """`input_ids` and, where it is padded, `attention_mask` are int64 [B, S]; the rest is the family's own."""
    labels: "Tensor"
    """int64 [B, S]; `IGNORED` where nothing is supervised. A label stands at its own token's place."""

    def to(self, device: "torch.device") -> "Batch":
        """Copy to a device."""
        return Batch({k: v.to(device, non_blocking=True) for k, v in self.inputs.items()}, self.labels.to(device))


class HasMedia(Protocol):
    """A sample, or what is made of one."""

    @property
    def media(self) -> Sequence[Media]:
        """In the order of the text."""
        ...


class Collator:
    """Joins encoded samples of one checkpoint: padded on the right, on the left for generation, or packed.

    Args:
        packs: what is learned from is packed (`for_loss`).
    """

    def __init__(self, family: ModelSpec, processor: Any, packs: bool = False) -> None:
        self.family = family
        self.processor = processor
        self.packs = packs
        self.pad_token_id: int = processor.tokenizer.pad_token_id

    def kinds(self, samples: Sequence[HasMedia]) -> list[int]:
        """The kind of each sample (`ModelSpec.batch_kind`); those of different kinds share no batch."""
        return [self.family.batch_kind(sample.media) for sample in samples]

    def __call__(self, samples: Sequence[Encoded], padding_side: Literal["right", "left"] = "right") -> Batch:
        """Join `samples`; their order is kept.

        Raises:
            ValueError: they are of several kinds.
        """
        import torch
        from torch.nn.utils.rnn import pad_sequence

        self._refuse_mixed(samples)

        def padded(rows: "list[Tensor]", value: int) -> "Tensor":
            return pad_sequence(rows, batch_first=True, padding_value=value, padding_side=padding_side)

        input_ids = padded([sample.input_ids for sample in samples], self.pad_token_id)
        supervised = padded([sample.supervised for sample in samples], False)
        lengths = torch.tensor([len(sample.input_ids) for sample in samples])[:, None]
        place = torch.arange(input_ids.shape[1])
        filled = place < lengths if padding_side == "right" else place >= input_ids.shape[1] - lengths
        attention_mask = filled.long()
        labels = input_ids.masked_fill(~supervised, IGNORED)
        media = [item for sample in samples for item in sample.media]
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        inputs |= self.family.token_inputs(input_ids, supervised)
        return Batch(inputs | self.family.collate(self.processor, input_ids, media), labels)

    def on_device(
        self, samples: Sequence[Encoded], model: Any, padding_side: Literal["right", "left"] = "right"
    ) -> "tuple[dict[str, Tensor], Tensor]":
        """Join `samples` as `model` takes them, on its device: its inputs, and the labels."""
        batch = self(samples, padding_side).to(next(model.parameters()).device)
        return self.family.model_inputs(self.processor, batch.inputs), batch.labels

    def packed(self, samples: Sequence[Encoded]) -> Batch:
        """Join `samples` end to end in one row; their order is kept. No sample's first token is predicted.

        Raises:
            ValueError: they are of several kinds.
        """
        import torch

        self._refuse_mixed(samples)
        input_ids = torch.cat([sample.input_ids for sample in samples])[None]
        supervised = torch.cat([sample.supervised for sample in samples])[None]
        labels = input_ids.masked_fill(~supervised, IGNORED)
        starts = torch.tensor([0, *(sample.num_tokens for sample in samples[:-1])]).cumsum(0)
        labels[:, starts] = IGNORED  # it would be predicted from the sample before
        media = [item for sample in samples for item in sample.media]
        inputs = {"input_ids": input_ids} | self.family.token_inputs(input_ids, supervised)
        return Batch(inputs | self.family.collate(self.processor, input_ids, media), labels)

    def for_loss(self, samples: Sequence[Encoded], model: Any, times: int = 1) -> "tuple[dict[str, Tensor], Tensor]":
        """Join `samples`, packed where this collator packs, as `on_device` does, with the tower's inputs worked out.

        Args:
            times: so many equal blocks their media are, of which the tower is to see one (`SharedVision.repeated`).
        """
        device = next(model.parameters()).device
        collated = self.packed(samples) if self.packs else self(samples)
        worked_out = self.family.tower_inputs(model, collated.inputs, device, times)
        if self.packs:
            lengths = [sample.num_tokens for sample in samples]
            positions = self.family.packed_positions(model, collated.inputs, lengths)
            worked_out |= {"position_ids": positions.to(device), "attention_mask": borders(lengths, device)}
        batch = collated.to(device)
        return self.family.model_inputs(self.processor, batch.inputs) | worked_out, batch.labels

    def _refuse_mixed(self, samples: Sequence[HasMedia]) -> None:
        if len(kinds := set(self.kinds(samples))) > 1:
            raise ValueError(
                f"{type(self.family).__name__} takes no batch of the kinds {sorted(kinds)} together: a sample would be "
                "seen otherwise than by itself; cut samples apart by `kinds`"
            )
