"""The choices of an evaluation inside a run."""

from typing import Self

from pydantic import Field, model_validator

from vlmft.config.spec import Spec


class EvaluationSpec(Spec, abstract=True):
    """How held-out samples are judged."""


class NoEvaluation(EvaluationSpec):
    """No evaluation: held-out samples are still kept out of training."""


class Generate(EvaluationSpec):
    """Greedy answers to held-out samples, scored against the last assistant turn."""

    base: bool = Field(description="also before training, so that the table compares")
    every_steps: int | None = Field(ge=1, description="also during training, every so many steps")
    best_by: str | None = Field(
        description="a metric: the state that scores highest on it while training is kept, and the run ends with it"
    )
    max_samples: int | None = Field(ge=1, description="at most so many samples, chosen by hash of their ids; null: all")
    max_new_tokens: int = Field(ge=1, description="longest answer")
    batch_size: int = Field(ge=1, description="samples answered at once on a rank")

    @model_validator(mode="after")
    def _scored_while_training(self) -> Self:
        if self.best_by is not None and self.every_steps is None:
            raise ValueError(f"best_by={self.best_by} needs every_steps: the steps after which the model is scored")
        return self
