"""Held-out answers, each good or bad: does a model find the good ones likelier?"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from vlmft.data.problems import naming_sample
from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.errors import DataError
from vlmft.evaluation.answers import Answer
from vlmft.evaluation.batches import BatchJudge
from vlmft.evaluation.class_metrics import AUROC, Predicted, auroc, interval, one_against, paired_bootstrap
from vlmft.evaluation.compare import Comparison
from vlmft.evaluation.measures import ANSWER_AUROC, OF_ANSWERS
from vlmft.evaluation.specs import Generate
from vlmft.types import Rated, Sample

if TYPE_CHECKING:
    from torch import Tensor

ReadAnswers = Callable[[Any, Sequence[Encoded]], "Tensor"]
"""Of a model and encoded answers: the log-probability a token of each, [B]."""

LOG_PROB = "log_prob"
"""In predictions/*.jsonl: nats a token."""
_RATINGS = {True: "good", False: "bad"}


class RatedJudge(BatchJudge[float]):
    """Judges models by how likely they find held-out answers; nothing is generated.

    Args:
        samples: rated answers, of both kinds.
        read: asks a model for the log-probabilities.
        places: as `BatchJudge` takes them.

    Raises:
        DataError: a sample has no rated answer, or all are of one kind.
    """

    def __init__(
        self,
        spec: Generate,
        encoder: Encoder,
        collator: Collator,
        samples: Sequence[Sample],
        read: ReadAnswers,
        **places: Any,
    ) -> None:
        super().__init__(spec, OF_ANSWERS, encoder, collator, samples, **places)
        self.read = read
        ratings = [_rating(encoder, sample) for sample in samples]
        if len({*ratings}) == 1:
            raise DataError(
                f"eval_dataset: all {len(samples)} held-out answers that are judged are {_RATINGS[ratings[0]]}, and "
                f"{ANSWER_AUROC} compares good ones with bad ones; hold out others, or take evaluation=none"
            )

    @property
    def encode(self) -> Callable[[Sample], Encoded]:
        """The prompt with its answer."""
        return self.encoder.encode

    def said(self, model: Any, encoded: list[Encoded]) -> list[float]:
        """The log-probability a token of each answer."""
        found: list[float] = self.read(model, encoded).tolist()
        return found

    def scored(self, sample: Sample, said: float) -> Answer:
        """See `BatchJudge`: the answer that was given is what is called the prediction, its rating the reference."""
        rated = sample.target
        assert isinstance(rated, Rated)
        return Answer(
            id=sample.id,
            question=sample.messages[-1].text,
            reference=_RATINGS[rated.good],
            prediction=rated.answer,
            scores={LOG_PROB: said},
        )

    def scores(self, answers: Sequence[Answer]) -> dict[str, float]:
        """See `Judge.scores`."""
        return {ANSWER_AUROC: auroc(_ranked(answers))}

    def compare(self, base: Sequence[Answer] | None, tuned: Sequence[Answer]) -> list[Comparison]:
        """By the paired bootstrap over the answers."""
        now, before = _ranked(tuned), _ranked(base) if base else None
        return [
            Comparison(
                metric=ANSWER_AUROC,
                n=len(tuned),
                tuned=interval(now, AUROC, auroc(now)),
                base=interval(before, AUROC, auroc(before)) if before else None,
                test="bootstrap",
                p_value=paired_bootstrap(before, now, AUROC) if before else None,
            )
        ]


def _rating(encoder: Encoder, sample: Sample) -> bool:
    with naming_sample(sample.id, sample.place):
        target = encoder.learnt(sample).target
    assert isinstance(target, Rated)
    return target.good


def _ranked(answers: Sequence[Answer]) -> Predicted:
    good = [answer.reference == _RATINGS[True] for answer in answers]
    return one_against(good, [answer.scores[LOG_PROB] for answer in answers])
