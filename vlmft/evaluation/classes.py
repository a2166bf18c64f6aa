"""Judges a classifier on held-out samples. C = classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlmft.data.problems import naming_sample
from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.errors import ConfigError
from vlmft.evaluation.answers import Answer
from vlmft.evaluation.batches import BatchJudge
from vlmft.evaluation.class_metrics import (
    AUROC,
    FIGURES,
    Predicted,
    draw_confusion,
    figures,
    interval,
    paired_bootstrap,
)
from vlmft.evaluation.compare import Comparison, compare
from vlmft.evaluation.measures import Scale
from vlmft.evaluation.specs import Generate
from vlmft.models.classifier import predicted, probabilities
from vlmft.types import Classes, Labels, Sample

ACCURACY = FIGURES[0]


class ClassJudge(BatchJudge[list[float]]):
    """Compares predicted classes with the true ones; AUROC is left out where the samples leave it undefined.

    Args:
        frequencies: of the classes in the training data. They are the base: an untrained head says nothing.
        threshold: of several labels, the least probability of a predicted class.

    Raises:
        ConfigError: the best state is to be chosen by a figure that the samples leave undefined.
        DataError: a sample has no class.
    """

    def __init__(
        self,
        spec: Generate,
        encoder: Encoder,
        collator: Collator,
        samples: Sequence[Sample],
        classes: Classes,
        frequencies: Sequence[float],
        threshold: float,
        **places: Any,
    ) -> None:
        self.classes = classes
        self.frequencies = list(frequencies)
        self.threshold = threshold
        self.truth = np.zeros((len(samples), len(classes.names)), dtype=bool)
        for row, sample in enumerate(samples):
            with naming_sample(sample.id, sample.place):
                target = encoder.learnt(sample).target
            assert isinstance(target, Labels)
            self.truth[row, list(classes.numbers(target))] = True
        undefined = [name for name, own in zip(classes.names, self.truth.T, strict=True) if own.all() or not own.any()]
        if undefined and spec.best_by == AUROC:
            raise ConfigError(
                f"evaluation.best_by: {AUROC} is undefined where a class has no held-out sample, or all of them: "
                f"{', '.join(undefined)}; hold out others, or take f1_macro"
            )
        names = [name for name in FIGURES if name != AUROC or not undefined]
        super().__init__(
            spec,
            {name: Scale(name == ACCURACY, is_bounded=True) for name in names},
            encoder,
            collator,
            samples,
            **places,
        )
        common = self._chosen([self.frequencies])[0]
        self.base_name = f"always {', '.join(common) or 'no class'}"

    def said(self, model: Any, encoded: list[Encoded]) -> list[list[float]]:
        """The probability of each class."""
        inputs, _ = self.collator.on_device(encoded, model)
        found: list[list[float]] = probabilities(model(**inputs), self.classes.multi).tolist()
        return found

    def scored(self, sample: Sample, said: list[float]) -> Answer:
        """See `BatchJudge`."""
        assert isinstance(sample.target, Labels)
        chosen = self._chosen([said])[0]
        return Answer(
            id=sample.id,
            question=sample.messages[-1].text,
            reference=", ".join(sample.target.names),
            prediction=", ".join(chosen),
            scores={ACCURACY: float(set(chosen) == set(sample.target.names))},
            probabilities=dict(zip(self.classes.names, said, strict=True)),
        )

    def answer_base(self, model: Any) -> list[Answer]:
        """What the training data's frequencies say of every sample: always its most frequent class."""
        return [self.scored(sample, self.frequencies) for sample in self.samples]

    def scores(self, answers: Sequence[Answer]) -> dict[str, float]:
        """See `Judge.scores`."""
        found = figures(self._predicted(answers))
        return {name: value for name in self.measures if (value := found[name]) is not None}

    def compare(self, base: Sequence[Answer] | None, tuned: Sequence[Answer]) -> list[Comparison]:
        """Accuracy as any right and wrong answers; the other figures by the paired bootstrap."""
        now, before = self._predicted(tuned), self._predicted(base) if base else None
        values, earlier = self.scores(tuned), self.scores(base) if base else {}
        others = [
            Comparison(
                metric=name,
                n=len(tuned),
                tuned=interval(now, name, values[name]),
                base=interval(before, name, earlier[name]) if before else None,
                test="bootstrap",
                p_value=paired_bootstrap(before, now, name) if before else None,
            )
            for name in self.measures
            if name != ACCURACY
        ]
        return [*compare(base, tuned, {ACCURACY: self.measures[ACCURACY]}), *others]

    def draw(self, path: Path, answers: Sequence[Answer]) -> None:
        """See `Judge.draw`: the confusion matrix."""
        draw_confusion(path / "confusion.png", self._predicted(answers), self.classes.names, self.classes.multi)

    def _chosen(self, said: Sequence[Sequence[float]]) -> list[tuple[str, ...]]:
        numbers = predicted(torch.tensor(said, dtype=torch.float64), self.threshold, self.classes.multi)
        return [tuple(self.classes.names[number] for number in own) for own in numbers]

    def _predicted(self, answers: Sequence[Answer]) -> Predicted:
        said = np.array([[answer.probabilities[name] for name in self.classes.names] for answer in answers])
        chosen = np.zeros_like(self.truth)
        for row, own in enumerate(predicted(torch.from_numpy(said), self.threshold, self.classes.multi)):
            chosen[row, list(own)] = True
        return Predicted(self.truth, chosen, said)
