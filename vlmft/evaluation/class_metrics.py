"""How good predicted classes are: figures by scikit-learn, and their intervals by the bootstrap.

N = samples, C = classes, R = resamples. Truth and prediction are bool [N, C]: a sample's classes; the scores, float
[N, C], are probabilities.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmft.errors import ConfigError
from vlmft.evaluation.statistics import CONFIDENCE, Interval

if TYPE_CHECKING:
    from pathlib import Path

Array = np.ndarray[Any, Any]

RESAMPLES = 1999
AVERAGED = ("f1_macro", "f1_micro", "precision_macro", "precision_micro", "recall_macro", "recall_micro")
AUROC = "auroc"
FIGURES = ("accuracy", *AVERAGED, AUROC)

_AT_ONCE = 8_000_000  # values of a batch of resamples


@dataclass(frozen=True)
class Predicted:
    """Predictions of one model for N samples, beside the truth."""

    truth: Array
    prediction: Array
    scores: Array

    def __len__(self) -> int:
        return len(self.truth)


def require_sklearn() -> None:
    """Raise `ConfigError` where scikit-learn is not installed."""
    if find_spec("sklearn") is None:
        raise ConfigError("trainer=classification needs scikit-learn: pip install 'vlmft[classification]'")


def figures(predicted: Predicted) -> dict[str, float | None]:
    """`FIGURES` by name, from 0 to 1.

    Accuracy is the share of samples whose classes are all right. A class that is never predicted, or never there, has
    precision, or recall, 0. AUROC is the mean over the classes of one against the rest; None where a class has no
    sample, or no sample is without it.
    """
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support, roc_auc_score

    # A single-label sample is a row with a single 1, of which the averages are those of its class numbers.
    truth, prediction = predicted.truth.astype(int), predicted.prediction.astype(int)
    found: dict[str, float | None] = {"accuracy": float(accuracy_score(truth, prediction))}
    for average in ("macro", "micro"):
        precision, recall, f1, _ = precision_recall_fscore_support(truth, prediction, average=average, zero_division=0)
        found |= {f"precision_{average}": float(precision), f"recall_{average}": float(recall)}
        found[f"f1_{average}"] = float(f1)
    present = truth.any(0) & ~truth.all(0)
    found[AUROC] = float(roc_auc_score(truth, predicted.scores, average="macro")) if present.all() else None
    return {name: found[name] for name in FIGURES}


def one_against(truth: Sequence[bool], scores: Sequence[float]) -> Predicted:
    """A single class, whose scores need be no probabilities, for what asks for AUROC; nothing is predicted."""
    rows = np.asarray(truth)[:, None]
    return Predicted(rows, np.zeros_like(rows), np.asarray(scores)[:, None])


def auroc(predicted: Predicted) -> float:
    """AUROC without scikit-learn, NaN where it is undefined."""
    return float(_auroc(predicted, np.arange(len(predicted))[None], AUROC)[0])


def bootstrapped(predicted: Predicted, name: str) -> Array:
    """The figure `name` of each of R resamples, [R]; always the same draws for the same N.

    AUROC is NaN where a resample leaves it undefined.

    Source: B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7 (1979).
    """
    n = len(predicted)
    draws = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    at_once = max(1, _AT_ONCE // (n * predicted.truth.shape[1]))
    compute = _auroc if name == AUROC else _averaged
    pieces = [compute(predicted, draws[i : i + at_once], name) for i in range(0, RESAMPLES, at_once)]
    return np.concatenate(pieces)


def interval(predicted: Predicted, name: str, value: float) -> Interval:
    """`value` with the percentile interval of its bootstrap."""
    drawn = bootstrapped(predicted, name)
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return Interval(value, 0.0, 1.0)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value, min(float(low), value), max(float(high), value))


def paired_bootstrap(base: Predicted, tuned: Predicted, name: str) -> float:
    """The two-sided p-value of the difference of two models' figures on the same samples.

    Twice the share of resamples, drawn alike for both, in which the better one is not better, and 1 at most; the one
    found counts among them.

    Raises:
        ValueError: the two have different truths.
    """
    if not np.array_equal(base.truth, tuned.truth):
        raise ValueError("both models should answer the same samples; their references differ")
    difference = bootstrapped(tuned, name) - bootstrapped(base, name)
    difference = difference[~np.isnan(difference)]
    against = min((difference <= 0).sum(), (difference >= 0).sum())
    return min(1.0, 2 * (float(against) + 1) / (len(difference) + 1))


def _averaged(predicted: Predicted, draws: Array, name: str) -> Array:
    """Accuracy, or an averaged figure, of resamples given as indices [r, N]."""
    if name == "accuracy":
        return np.asarray((predicted.truth == predicted.prediction).all(1)[draws].mean(1))
    figure, _, average = name.partition("_")
    hits = (predicted.truth & predicted.prediction)[draws].sum(1).astype(float)  # [r, C]
    chosen = predicted.prediction[draws].sum(1).astype(float)
    there = predicted.truth[draws].sum(1).astype(float)
    if average == "micro":
        hits, chosen, there = (counts.sum(1, keepdims=True) for counts in (hits, chosen, there))
    below = {"precision": chosen, "recall": there, "f1": (chosen + there) / 2}[figure]
    return np.asarray(np.divide(hits, below, out=np.zeros_like(hits), where=below > 0).mean(1))


def _auroc(predicted: Predicted, draws: Array, name: str) -> Array:
    """AUROC of resamples by the rank sum (Mann and Whitney 1947); equal scores share their rank."""
    from scipy.stats import rankdata

    areas = []
    for number in range(predicted.truth.shape[1]):
        truth = predicted.truth[:, number][draws]  # [r, N]
        ranks = rankdata(predicted.scores[:, number][draws], axis=1)
        there = truth.sum(1).astype(float)
        pairs = there * (truth.shape[1] - there)
        above = (ranks * truth).sum(1) - there * (there + 1) / 2
        areas.append(np.divide(above, pairs, out=np.full_like(pairs, np.nan), where=pairs > 0))
    return np.asarray(np.mean(areas, axis=0))


def draw_confusion(path: "Path", predicted: Predicted, classes: Sequence[str], multi: bool) -> None:
    """Draw the confusion matrix, counted and coloured by the row's share; of several labels, one 2 x 2 a class.

    Rows are the truth, columns the predictions.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    matrices = confusion(predicted, classes, multi)
    columns = min(4, len(matrices))
    rows = -(-len(matrices) // columns)
    size = (max(3.2, 0.55 * len(matrices[0][2]) + 2) * columns, max(3.0, 0.5 * len(matrices[0][2]) + 1.6) * rows)
    figure = Figure(figsize=(min(size[0], 40), min(size[1], 40)), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (title, matrix, names) in enumerate(matrices, start=1):
        axes = figure.add_subplot(rows, columns, place)
        shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set(title=title, xlabel="predicted", ylabel="true")
        axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 4 else 0)
        axes.set_yticks(range(len(names)), names)
        if len(names) <= 40:
            for row, column in np.ndindex(matrix.shape):
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour)
    figure.savefig(path)


def confusion(predicted: Predicted, classes: Sequence[str], multi: bool) -> list[tuple[str, Array, Sequence[str]]]:
    """Title, counts [true, predicted] and the names of rows and columns: one of all classes, or a 2 x 2 of each."""
    from sklearn.metrics import confusion_matrix, multilabel_confusion_matrix

    if multi:
        found = multilabel_confusion_matrix(predicted.truth.astype(int), predicted.prediction.astype(int))
        return [(name, matrix, ("no", "yes")) for name, matrix in zip(classes, found, strict=True)]
    numbers = range(len(classes))
    found = confusion_matrix(predicted.truth.argmax(1), predicted.prediction.argmax(1), labels=[*numbers])
    return [("", found, classes)]
