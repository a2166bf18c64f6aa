"""Held-out samples put to a model in batches, by all ranks together."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
import torch.distributed

from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.encoding.loading import EncodedGroup, Watch, encode_group, load
from vlmft.errors import DataError, VlmftError
from vlmft.evaluation.answers import Answer
from vlmft.evaluation.judge import Judge, Measure
from vlmft.evaluation.specs import Generate
from vlmft.types import Sample

T = TypeVar("T")


class BatchJudge(Judge, Generic[T]):
    """Puts held-out samples to a model; of each it says something, a T, which is scored.

    Args:
        num_workers: loader processes that encode while the model computes.
        rank, world_size: this process answers its share; all ranks get all answers.
        between_batches: called before each batch; may raise to stop.
    """

    def __init__(
        self,
        spec: Generate,
        measures: Mapping[str, Measure],
        encoder: Encoder,
        collator: Collator,
        samples: Sequence[Sample],
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        between_batches: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(spec, measures)
        self.encoder = encoder
        self.collator = collator
        self.samples = samples
        self.num_workers = num_workers
        self.rank = rank
        self.world_size = world_size
        self.between_batches = between_batches

    @property
    def encode(self) -> Callable[[Sample], Encoded]:
        """What is put to the model of a sample: its prompt."""
        return self.encoder.encode_prompt

    @abstractmethod
    def said(self, model: Any, encoded: list[Encoded]) -> list[T]:
        """What `model` says of samples that may share a batch, in their order; no gradient is kept."""

    @abstractmethod
    def scored(self, sample: Sample, said: T) -> Answer:
        """A sample's answer with its scores."""

    @property
    def num_samples(self) -> int:
        """See `Judge.num_samples`."""
        return len(self.samples)

    def answer(self, model: Any) -> list[Answer]:
        """Answer every sample, in their order. The model is left in the mode that it came in.

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
                for index, said in zip(indices, self._all_said(model, group.samples), strict=True):
                    answers[index] = self.scored(self.samples[index], said)
        finally:
            model.train(was_training)
        if self.world_size > 1:
            shares: list[Any] = [None] * self.world_size
            torch.distributed.all_gather_object(shares, answers)
            answers = {index: answer for share in shares for index, answer in share.items()}
        return [answers[index] for index in range(len(self.samples))]

    @torch.no_grad()
    def _all_said(self, model: Any, encoded: list[Encoded]) -> list[T]:
        """In order; samples that cannot share a batch are put one kind after another."""
        kinds = self.collator.kinds(encoded)
        said: dict[int, T] = {}
        for kind in dict.fromkeys(kinds):
            places = [place for place, own in enumerate(kinds) if own == kind]
            said |= zip(places, self.said(model, [encoded[place] for place in places]), strict=True)
        return [said[place] for place in range(len(encoded))]


class _Batches:
    """Maps a batch's number to its encoded samples."""

    def __init__(self, judge: BatchJudge[Any], batches: Sequence[Sequence[int]]) -> None:
        self.encoder = judge.encoder
        self.encode = judge.encode
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
            encode=self.encode,
            sample_id=lambda sample: sample.id,
            watch=self.watch,
        )
