"""Greedy generation on held-out samples, and their scores."""

from collections.abc import Mapping, Sequence
from typing import Any

from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.encoding.generating import answer_text, generating
from vlmft.evaluation.answers import Answer
from vlmft.evaluation.batches import BatchJudge
from vlmft.evaluation.specs import Generate
from vlmft.scoring import MetricSpec, check_references, named_score
from vlmft.types import Sample, Solution


class Evaluator(BatchJudge[str]):
    """Answers the same held-out samples with any model of one checkpoint; see `BatchJudge`.

    Args:
        samples: conversations; the last assistant turn, or the solution, is the reference, what stands before it the
            prompt.
        metrics: by name.

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
        **places: Any,
    ) -> None:
        super().__init__(spec, metrics, encoder, collator, samples, **places)
        self.scoring = metrics
        check_references(metrics, ((s.id, text) for s in samples if (text := _reference(s)) is not None))

    def said(self, model: Any, encoded: list[Encoded]) -> list[str]:
        """Greedy answers."""
        inputs, _ = self.collator.on_device(encoded, model, padding_side="left")
        with generating(model, self.collator):
            output = model.generate(**inputs, max_new_tokens=self.spec.max_new_tokens)
        new = output[:, inputs["input_ids"].shape[1] :]
        return [answer_text(prompt, ids, self.collator) for prompt, ids in zip(encoded, new, strict=True)]

    def scored(self, sample: Sample, prediction: str) -> Answer:
        """See `BatchJudge`. Raises `ScoringError` where a metric fails on an answer; names both."""
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
