"""Supervised fine-tuning."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vlmft.evaluation import Generate
from vlmft.tasks.base import Kit, Task, places

if TYPE_CHECKING:
    from vlmft.evaluation.judge import Judge
    from vlmft.training.objective import Objective
    from vlmft.types import Sample


class SftTask(Task):
    """Answers are learned token by token, and judged as the model generates them."""

    counts_flops: ClassVar[bool] = True

    def score_names(self) -> Sequence[str]:
        """The chosen metrics."""
        return list(self.config.metric)

    def judge_of(self, kit: Kit, evaluation: Generate, samples: "Sequence[Sample]") -> "Judge":
        """Greedy answers, scored by the chosen metrics."""
        from vlmft.evaluation.generate import Evaluator

        return Evaluator(
            evaluation,
            kit.encoder,
            kit.collator,
            samples,
            self.config.metric,
            num_workers=self.config.trainer.num_workers,
            between_batches=kit.stop.obey,
            **places(),
        )

    def objective(self, model: Any, kit: Kit) -> "Objective[Any]":
        """Cross entropy."""
        from vlmft.training.sft import SupervisedObjective

        return SupervisedObjective(kit.collator)
