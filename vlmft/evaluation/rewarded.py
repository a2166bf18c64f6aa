"""Greedy answers, scored by a run's rewards beside its metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoder
from vlmft.evaluation.answers import Answer
from vlmft.evaluation.generate import Evaluator
from vlmft.evaluation.measures import OF_REWARDS
from vlmft.evaluation.specs import Generate
from vlmft.scoring import MetricSpec, Reward, weighted_sum
from vlmft.scoring.rewards import OWN, TOTAL
from vlmft.types import Sample


class RewardedEvaluator(Evaluator):
    """An `Evaluator` whose first score is the weighted sum of `rewards`, and whose next are theirs, before the weights.

    Args:
        rewards: by name.
        metrics: as an `Evaluator` takes them, as all else.
    """

    def __init__(
        self,
        spec: Generate,
        encoder: Encoder,
        collator: Collator,
        samples: Sequence[Sample],
        rewards: Mapping[str, Reward],
        metrics: Mapping[str, MetricSpec],
        **others: Any,
    ) -> None:
        scored = {OWN + name: reward.metric for name, reward in rewards.items()}
        super().__init__(spec, encoder, collator, samples, scored | dict(metrics), **others)
        self.rewards = rewards
        self.measures = {TOTAL: OF_REWARDS, **self.measures}

    def answer(self, model: Any) -> list[Answer]:
        """See `Evaluator.answer`."""
        return [replace(answer, scores=self._summed(answer.scores)) for answer in super().answer(model)]

    def _summed(self, scores: dict[str, float]) -> dict[str, float]:
        own = {name: scores[OWN + name] for name in self.rewards}
        return {TOTAL: weighted_sum(self.rewards, own)} | scores
