"""Scores that are no metrics of generated answers; light, so that the driver knows their names."""

from dataclasses import dataclass

ACCURACY, MARGIN = "preference_accuracy", "preference_margin"


@dataclass(frozen=True)
class Scale:
    """What values a score takes, see `judge.Measure`."""

    is_binary: bool
    is_bounded: bool


OF_PAIRS = {ACCURACY: Scale(True, True), MARGIN: Scale(False, False)}
"""Of preference pairs: whether the chosen answer is likelier than the rejected one, and the difference of their
log-probabilities, in nats. Both are the model's own, without a reference, so that any two models can be compared."""

ANSWER_AUROC = "answer_auroc"
OF_ANSWERS = {ANSWER_AUROC: Scale(False, True)}
"""Of rated answers: the probability that a good one is likelier, a token, than a bad one (to other prompts, too), which
is the area under the ROC curve. It is the model's own, without a reference."""

OF_REWARDS = Scale(is_binary=False, is_bounded=False)
"""Of the weighted sum of rewards, in the weights' own unit: with 2 and 5, from 0 to 7."""
