"""Held-out preference pairs: which of its two answers does a model find likelier, and by how much."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed

from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.encoding.loading import EncodedGroup, Watch, encode_group, load
from vlmft.errors import DataError, VlmftError
from vlmft.evaluation.answers import Answer
from vlmft.evaluation.judge import Judge
from vlmft.evaluation.measures import ACCURACY, MARGIN, OF_PAIRS
from vlmft.evaluation.specs import Generate
from vlmft.types import Preference, Sample

if TYPE_CHECKING:
    from torch import Tensor

ReadPairs = Callable[[Any, Sequence[Encoded]], "tuple[Tensor, Tensor]"]
"""Of a model and encoded pairs: the log-probabilities of chosen and rejected answers, each [B]."""


class PairJudge(Judge):
    """Judges models by held-out pairs; nothing is generated.

    Args:
        samples: pairs.
        read: asks a model for the log-probabilities.
        num_workers: loader processes that encode while the model reads.
        rank, world_size: this process reads its share; all ranks get all answers.
        between_batches: called before each batch; may raise to stop.

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
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        between_batches: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(spec, OF_PAIRS)
        self.encoder = encoder
        self.collator = collator
        self.samples = samples
        self.read = read
        self.num_workers = num_workers
        self.rank = rank
        self.world_size = world_size
        self.between_batches = between_batches
        DataError.raise_if(_problem(encoder, sample) for sample in samples if not isinstance(sample.target, Preference))

    @property
    def num_samples(self) -> int:
        """See `Judge.num_samples`."""
        return len(self.samples)

    def answer(self, model: Any) -> list[Answer]:
        """Read every pair, in their order. The model is left in the mode that it came in.

        Raises:
            DataError: a sample cannot be encoded.
        """
        mine = range(self.rank, len(self.samples), self.world_size)
        batches = [mine[i : i + self.spec.batch_size] for i in range(0, len(mine), self.spec.batch_size)]
        was_training = model.training
        model.eval()
        answers: dict[int, Answer] = {}
        try:
            for indices, group in zip(batches, load(_Batches(self, batches), self.num_workers), strict=True):
                DataError.raise_if(group.bad.values())  # a score over other samples would be another score
                if self.between_batches is not None:
                    self.between_batches()
                for index, read in zip(indices, self._read(model, group.samples), strict=True):
                    answers[index] = _answer(self.samples[index], *read)
        finally:
            model.train(was_training)
        if self.world_size > 1:
            shares: list[Any] = [None] * self.world_size
            torch.distributed.all_gather_object(shares, answers)
            answers = {index: answer for share in shares for index, answer in share.items()}
        return [answers[index] for index in range(len(self.samples))]

    @torch.no_grad()
    def _read(self, model: Any, pairs: list[Encoded]) -> list[tuple[float, float]]:
        """Chosen and rejected of each, in order; pairs that cannot share a batch are read one kind after another."""
        kinds = self.collator.kinds(pairs)
        found: dict[int, tuple[float, float]] = {}
        for kind in dict.fromkeys(kinds):
            places = [place for place, own in enumerate(kinds) if own == kind]
            chosen, rejected = self.read(model, [pairs[place] for place in places])
            found |= zip(places, zip(chosen.tolist(), rejected.tolist(), strict=True), strict=True)
        return [found[place] for place in range(len(pairs))]


def _problem(encoder: Encoder, sample: Sample) -> str:
    try:
        encoder.count(sample)
    except DataError as error:
        return str(error)
    return f"{sample.id}: it is no preference pair"


def _answer(sample: Sample, chosen: float, rejected: float) -> Answer:
    pair = sample.target
    assert isinstance(pair, Preference)
    return Answer(
        id=sample.id,
        question=next(message.text for message in reversed(sample.messages) if message.role == "user"),
        reference=pair.chosen,
        prediction=pair.chosen if chosen > rejected else pair.rejected,
        scores={ACCURACY: float(chosen > rejected), MARGIN: chosen - rejected},
    )


class _Batches:
    """Maps a batch's number to its encoded pairs."""

    def __init__(self, judge: PairJudge, batches: Sequence[Sequence[int]]) -> None:
        self.encoder = judge.encoder
        self.samples = judge.samples
        self.batches = batches
        self.watch = Watch()

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> EncodedGroup | VlmftError:
        return encode_group(
            self.encoder,
            number,
            [self.samples[index] for index in self.batches[number]],
            encode=self.encoder.encode,
            sample_id=lambda sample: sample.id,
            watch=self.watch,
        )
