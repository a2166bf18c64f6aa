"""Held-out preference pairs: which of its two answers does a model find likelier, and by how much."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.errors import DataError
from vlmft.evaluation.answers import Answer
from vlmft.evaluation.batches import BatchJudge
from vlmft.evaluation.measures import ACCURACY, MARGIN, OF_PAIRS
from vlmft.evaluation.specs import Generate
from vlmft.types import Preference, Sample

if TYPE_CHECKING:
    from torch import Tensor

ReadPairs = Callable[[Any, Sequence[Encoded]], "tuple[Tensor, Tensor]"]
"""Of a model and encoded pairs: the log-probabilities of chosen and rejected answers, each [B]."""


class PairJudge(BatchJudge[tuple[float, float]]):
    """Judges models by held-out pairs, of each by the log-probabilities of its answers; nothing is generated.

    Args:
        samples: pairs.
        read: asks a model for the log-probabilities.
        places: as `BatchJudge` takes them.

    Raises:
        DataError: a sample is no pair.
    """

    def __init__(
        self,
        spec: Generate,
        encoder: Encoder,
        collator: Collator,
        samples: Sequence[Sample],
        read: ReadPairs,
        **places: Any,
    ) -> None:
        super().__init__(spec, OF_PAIRS, encoder, collator, samples, **places)
        self.read = read
        DataError.raise_if(_problem(encoder, sample) for sample in samples if not isinstance(sample.target, Preference))

    @property
    def encode(self) -> Callable[[Sample], Encoded]:
        """The whole pair."""
        return self.encoder.encode

    def said(self, model: Any, encoded: list[Encoded]) -> list[tuple[float, float]]:
        """The log-probabilities of each pair's chosen and rejected answer."""
        chosen, rejected = self.read(model, encoded)
        return list(zip(chosen.tolist(), rejected.tolist(), strict=True))

    def scored(self, sample: Sample, said: tuple[float, float]) -> Answer:
        """See `BatchJudge`."""
        chosen, rejected = said
        pair = sample.target
        assert isinstance(pair, Preference)
        return Answer(
            id=sample.id,
            question=next(message.text for message in reversed(sample.messages) if message.role == "user"),
            reference=pair.chosen,
            prediction=pair.chosen if chosen > rejected else pair.rejected,
            scores={ACCURACY: float(chosen > rejected), MARGIN: chosen - rejected},
        )


def _problem(encoder: Encoder, sample: Sample) -> str:
    try:
        encoder.count(sample)
    except DataError as error:
        return str(error)
    return f"{sample.id}: it is no preference pair"
