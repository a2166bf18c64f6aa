"""Single answers, good or bad."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vlmft.errors import ConfigError
from vlmft.evaluation import Generate
from vlmft.evaluation.measures import OF_ANSWERS
from vlmft.tasks.base import Kit, Task, places
from vlmft.tasks.reference import kept_on
from vlmft.training import Kto

if TYPE_CHECKING:
    from vlmft.data.run_data import RunData
    from vlmft.evaluation.judge import Judge
    from vlmft.training.objective import Objective
    from vlmft.types import Sample


class KtoTask(Task):
    """Good answers become likelier than bad ones; held-out answers are judged by how likely they are."""

    @property
    def trainer(self) -> Kto:
        """The trainer's own choices."""
        assert isinstance(self.config.trainer, Kto)
        return self.config.trainer

    def check(self) -> None:
        """See `Task.check`."""
        super().check()
        problems = []
        if self.trainer.reference == "adapters_off":
            problems += [f"trainer.reference=adapters_off: {why}; use copy" for why in kept_on(self.config)]
        if self.trainer.needs_kl and self.config.global_batch_size < 2:
            problems.append(
                "global_batch_size: 1 sample a step has no other answer that trainer.loss=kto could estimate the KL "
                "divergence from; take 2 or more, or trainer.loss=apo_zero_unpaired"
            )
        ConfigError.raise_if(problems)

    def prepare(self, data: "RunData") -> "RunData":
        """Refuse answers of one kind; each sample gets another's answer where the KL divergence is asked for."""
        from vlmft.data.mismatch import MismatchedMixture, refuse_one_kind

        refuse_one_kind(data.mixture)
        if not self.trainer.needs_kl:
            return data
        return replace(data, mixture=MismatchedMixture(data.mixture, self.config.global_batch_size))

    def score_names(self) -> Sequence[str]:
        """How well the model tells good answers from bad ones."""
        return list(OF_ANSWERS)

    def judge_of(self, kit: Kit, evaluation: Generate, samples: "Sequence[Sample]") -> "Judge":
        """How likely the model finds good and bad answers."""
        from vlmft.evaluation.rated import RatedJudge
        from vlmft.training.kto import AnswerReader

        return RatedJudge(
            evaluation,
            kit.encoder,
            kit.collator,
            samples,
            AnswerReader(kit.collator).means,
            num_workers=self.trainer.num_workers,
            between_batches=kit.stop.obey,
            **places(),
        )

    def objective(self, model: Any, kit: Kit) -> "Objective[Any]":
        """The loss of the answers, against the reference."""
        from vlmft.training.kto import AnswerReader, KtoObjective
        from vlmft.training.reference import StartValues, originals

        put_in = StartValues(model).put_in if self.trainer.reference == "copy" else lambda: originals(model)
        return KtoObjective(self.trainer, model, AnswerReader(kit.collator), self.config.batching, put_in)
