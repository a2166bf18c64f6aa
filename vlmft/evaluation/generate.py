"""Greedy generation on held-out samples, and their scores."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed

from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.encoding.generating import answer_text, generating
from vlmft.encoding.loading import EncodedGroup, Watch, encode_group, load
from vlmft.errors import DataError, VlmftError
from vlmft.evaluation.answers import Answer
from vlmft.evaluation.judge import Judge
from vlmft.evaluation.specs import Generate
from vlmft.scoring import MetricSpec, check_references, named_score
from vlmft.types import Sample, Solution


class Evaluator(Judge):
    """Answers the same held-out samples with any model of one checkpoint.

    Args:
        samples: conversations; the last assistant turn, or the solution, is the reference, what stands before it the
            prompt.
        metrics: by name.
        num_workers: loader processes that encode while the model generates.
        rank, world_size: this process answers its share; all ranks get all answers.
        between_batches: called before each batch; may raise to stop.

    Raises:
        DataError: a metric cannot compare answers with a sample's reference; all such samples are listed.
    """

    def __init__(
        self,
        spec: Generate,
        encoder: Encoder,
        collator: Collator,
        samples: Sequence[Sample],
        metrics: Mapping[str, MetricSpec],
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        between_batches: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(spec, metrics)
        self.encoder = encoder
        self.collator = collator
        self.samples = samples
        self.scoring = metrics
        self.num_workers = num_workers
        self.rank = rank
        self.world_size = world_size
        self.between_batches = between_batches
        check_references(metrics, ((s.id, text) for s in samples if (text := _reference(s)) is not None))

    @property
    def num_samples(self) -> int:
        """See `Judge.num_samples`."""
        return len(self.samples)

    def answer(self, model: Any) -> list[Answer]:
        """Answer every sample, in their order. The model is left in the mode that it came in.

        Raises:
            DataError: a sample cannot be encoded.
            ScoringError: a metric fails on an answer; names both.
        """
        mine = range(self.rank, len(self.samples), self.world_size)
        batches = [mine[i : i + self.spec.batch_size] for i in range(0, len(mine), self.spec.batch_size)]
        was_training = model.training
        model.eval()
        answers: dict[int, Answer] = {}
        try:
            for indices, group in zip(batches, load(_Prompts(self, batches), self.num_workers), strict=True):
                DataError.raise_if(group.bad.values())  # a score over other samples would be another score
                if self.between_batches is not None:
                    self.between_batches()
                for index, text in zip(indices, self._generate(model, group.samples), strict=True):
                    answers[index] = self._scored(self.samples[index], text)
        finally:
            model.train(was_training)
        if self.world_size > 1:
            shares: list[Any] = [None] * self.world_size
            torch.distributed.all_gather_object(shares, answers)
            answers = {index: answer for share in shares for index, answer in share.items()}
        return [answers[index] for index in range(len(self.samples))]

    def _generate(self, model: Any, encoded: list[Encoded]) -> list[str]:
        """The answers, in order; samples that cannot share a batch are answered one kind after another."""
        kinds = self.collator.kinds(encoded)
        texts: dict[int, str] = {}
        for kind in dict.fromkeys(kinds):
            places = [place for place, own in enumerate(kinds) if own == kind]
            texts |= zip(places, self._generate_batch(model, [encoded[place] for place in places]), strict=True)
        return [texts[place] for place in range(len(encoded))]

    @torch.no_grad()
    def _generate_batch(self, model: Any, encoded: list[Encoded]) -> list[str]:
        device = next(model.parameters()).device
        inputs = self.collator(encoded, padding_side="left").to(device).inputs
        inputs = self.collator.family.model_inputs(self.collator.processor, inputs)
        with generating(model, self.collator):
            output = model.generate(**inputs, max_new_tokens=self.spec.max_new_tokens)
        new = output[:, inputs["input_ids"].shape[1] :]
        return [answer_text(prompt, ids, self.collator) for prompt, ids in zip(encoded, new, strict=True)]

    def _scored(self, sample: Sample, prediction: str) -> Answer:
        if sample.rules.coordinates is not None:  # boxes as the model was taught to write them
            sample, _ = self.encoder.planner.plan(sample, None)
        reference = _reference(sample) or ""
        return Answer(
            id=sample.id,
            question=next(message.text for message in reversed(sample.messages) if message.role == "user"),
            reference=reference,
            prediction=prediction,
            scores={
                name: named_score(name, metric, sample.id, prediction, reference)
                for name, metric in self.scoring.items()
            },
        )


def _reference(sample: Sample) -> str | None:
    """The last answer or the solution; None where the sample holds neither."""
    if isinstance(sample.target, Solution):
        return sample.target.text
    return sample.messages[-1].text if sample.target is None else None


class _Prompts:
    """Maps a batch's number to its encoded prompts."""

    def __init__(self, evaluator: Evaluator, batches: Sequence[Sequence[int]]) -> None:
        self.encoder = evaluator.encoder
        self.samples = evaluator.samples
        self.batches = batches
        self.watch = Watch()

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> EncodedGroup | VlmftError:
        return encode_group(
            self.encoder,
            number,
            [self.samples[index] for index in self.batches[number]],
            encode=self.encoder.encode_prompt,
            sample_id=lambda sample: sample.id,
            watch=self.watch,
        )
