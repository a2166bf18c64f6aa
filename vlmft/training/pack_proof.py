"""A run's own look at its first pack: one sample's answer in the pack against the same sample alone.

Alone, it is a row with an attention mask, as it is in `batching=grouped`: another kernel computes it, and the model
counts its positions itself, so that a mistake in either of the pack's own ways shows as well.

K = supervised tokens of that sample, V = vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded
from vlmft.errors import ConfigError
from vlmft.training.loss import supervised_logits

if TYPE_CHECKING:
    from torch import Tensor

    from vlmft.models import Precision

BOUNDS: "dict[Precision, float]" = {"fp32": 1e-4, "bf16": 8 * 2**-7, "fp16": 8 * 2**-10}
"""The largest difference that rounding is held to explain, as a share of a token's logits (root mean square).

In 16 bits it is 8 steps of the format's eps.
"""


@dataclass(frozen=True)
class Reading:
    """What is compared of a row of samples: a trainer's own, so that what it learns from is what is looked at."""

    name: str
    of: "Callable[[Any, tuple[dict[str, Tensor], Tensor]], Tensor]"
    """From the model and a batch of one row: float32, rows of the first sample, then of the next."""
    rows: Callable[[Encoded], int]
    """How many of them are a sample's."""
    sequences: Callable[[Sequence[Any]], Sequence[Encoded]] = list
    """What stands in a pack of a step's units, in order."""


class PackProof:
    """Compares once, in the first pack that has two samples, and stops the run where a sample is not as it is alone.

    Args:
        precision: what the run computes in.
        say: takes the line that reports on it.
        reading: what is compared; None: the logits of supervised tokens.
    """

    def __init__(
        self,
        collator: Collator,
        precision: "Precision",
        say: Callable[[str], None],
        reading: Reading | None = None,
    ) -> None:
        self.collator = collator
        self.precision = precision
        self.say = say
        self.reading = reading or ANSWERS
        self.done = False

    def __call__(self, model: Any, packs: Sequence[Sequence[Any]]) -> None:
        """Look at the packs of a step, until one has been compared.

        Raises:
            ConfigError: the difference is more than rounding.
        """
        if self.done:
            return
        found = _to_compare([self.reading.sequences(pack) for pack in packs], self.reading)
        if found is None:
            return
        pack, number = found
        difference, bound = self._difference(model, pack, number), BOUNDS[self.precision]
        self.done = True
        name = f"sample {pack[number].id}, number {number + 1} of {len(pack)} in a pack"
        if not difference <= bound:
            raise ConfigError(
                f"batching=packed: {name}, is not computed as it is alone: its {self.reading.name} differ by "
                f"{difference:.1e} of their size, and rounding to {self.precision} explains {bound:.1e}; nothing was "
                "trained on it. Take batching=grouped, and report this with the model's name"
            )
        self.say(f"packed   {name}: its {self.reading.name} are as alone (within {difference:.0e}, bound {bound:.0e})")

    def _difference(self, model: Any, pack: Sequence[Encoded], number: int) -> float:
        """Of the sample's rows: of the worst one in fp32, else of the middle one.

        In fewer bits, rounding alone may send single tokens to other experts of a mixture.
        """
        import torch

        model = getattr(model, "module", model)  # without DDP, whose ranks would wait for each other
        was_training = model.training
        model.eval()  # no dropout
        try:
            with torch.no_grad():
                alone = self.reading.of(model, self.collator.on_device([pack[number]], model))
                before = sum(self.reading.rows(sample) for sample in pack[:number])
                packed = self.reading.of(model, self.collator.for_loss(pack, model))[before : before + len(alone)]
        finally:  # where memory runs out, the step is tried again
            model.train(was_training)
        shares = (packed - alone).square().mean(-1).sqrt() / alone.square().mean(-1).sqrt()
        return float(shares.max() if self.precision == "fp32" else shares.median())


def answer_logits(model: Any, batch: "tuple[dict[str, Tensor], Tensor]") -> "Tensor":
    """Of one row's supervised tokens, float32 [K, V]."""
    logits, _ = supervised_logits(model, *batch)
    return logits[0].float()


ANSWERS = Reading("logits", answer_logits, lambda sample: sample.num_supervised)
"""What a model says of each supervised token."""


def _to_compare(packs: Sequence[Sequence[Encoded]], reading: Reading = ANSWERS) -> tuple[Sequence[Encoded], int] | None:
    """A pack, and which of its samples has others before it: the last one with pictures, else the last one."""
    for pack in packs:
        later = [number for number in range(1, len(pack)) if reading.rows(pack[number])]
        if later:
            return pack, max([number for number in later if pack[number].media] or later)
    return None
