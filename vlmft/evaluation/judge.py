"""What judges a model on held-out samples: base and tuned model, and states between, by the same scores."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from vlmft.evaluation.answers import Answer
from vlmft.evaluation.compare import Comparison, compare
from vlmft.evaluation.specs import Generate


class Measure(Protocol):
    """What a score is; a `MetricSpec` says it of a metric."""

    @property
    def is_binary(self) -> bool:
        """Whether every score is 0 or 1."""
        ...

    @property
    def is_bounded(self) -> bool:
        """Whether every score is in [0, 1]."""
        ...


class Judge(ABC):
    """Judges any model of one checkpoint on the same held-out samples.

    Args:
        spec: when it is asked.
        measures: what each of its scores is, by name, the first of them first in every table.
    """

    base_name: str = "base"
    """What the tuned model is compared with, as the table calls it."""

    def __init__(self, spec: Generate, measures: Mapping[str, Measure]) -> None:
        self.spec = spec
        self.measures = measures

    @property
    @abstractmethod
    def num_samples(self) -> int:
        """How many samples are judged."""

    @abstractmethod
    def answer(self, model: Any) -> list[Answer]:
        """Judge `model` on every sample, in their order; all ranks get all answers."""

    def answer_base(self, model: Any) -> list[Answer]:
        """What the tuned model is compared with; `model` is as it stands before training."""
        return self.answer(model)

    def scores(self, answers: Sequence[Answer]) -> dict[str, float]:
        """Each score over all samples."""
        return {name: sum(answer.scores[name] for answer in answers) / len(answers) for name in self.measures}

    def draw(self, folder: Path, answers: Sequence[Answer]) -> None:  # noqa: B027 (most have nothing to draw)
        """Draw into a run's folder what there is to be seen of the tuned model's answers; nothing by default."""

    def compare(self, base: Sequence[Answer] | None, tuned: Sequence[Answer]) -> list[Comparison]:
        """Compare the answers of two models to the same samples, score by score."""
        return compare(base, tuned, self.measures)
