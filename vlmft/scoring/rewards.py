"""Metrics as rewards: what a generated answer earns while a model trains, each metric with a weight."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, ModelWrapValidatorHandler, model_validator

from vlmft.config.spec import TARGET, Spec
from vlmft.scoring.base import MetricSpec, named_score

TOTAL = "reward"
"""What the weighted sum of all rewards is called among scores and figures."""
OWN = "rewards/"
"""Before a reward's name: its own score, before the weight."""

_FIELDS = {TARGET, "weight", "metric"}


class Reward(Spec):
    """A metric with the weight of its score in the sum that a model is trained for.

    An entry of `registry/rewards/` is written as one of `registry/metrics/` is: `_target_` and the metric's settings.
    Where it is chosen, `weight` stands beside them.
    """

    weight: float = Field(
        gt=0,
        allow_inf_nan=False,
        description="what a score of 1 is worth; to keep an answer from something, choose a metric that gives less",
    )
    metric: MetricSpec

    @model_validator(mode="wrap")
    @classmethod
    def _from_entry(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Take a chosen entry apart, so that its keys in messages are those that the user writes."""
        if not isinstance(data, dict) or ("metric" in data and data.keys() <= _FIELDS):
            return handler(data)
        settings = {key: value for key, value in data.items() if key != "weight"}
        weight = {"weight": data["weight"]} if "weight" in data else {}
        return handler(weight | {"metric": MetricSpec.model_validate(settings)})


def rewards_of(rewards: Mapping[str, Reward], sample_id: str, completion: str, solution: str) -> dict[str, float]:
    """Return each reward's score of a completion, in [0, 1], before its weight.

    Raises:
        DataError: the sample's solution cannot be used.
        ScoringError: a reward raised something else, or gave no number in [0, 1]. Both name reward and sample.
    """
    return {
        name: named_score(name, reward.metric, sample_id, completion, solution, word="reward")
        for name, reward in rewards.items()
    }


def weighted_sum(rewards: Mapping[str, Reward], scores: Mapping[str, float]) -> float:
    """Return what a completion earns: the sum of its scores, each times its reward's weight."""
    return sum(reward.weight * scores[name] for name, reward in rewards.items())
