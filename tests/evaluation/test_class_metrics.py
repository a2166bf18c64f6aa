import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from vlmft.errors import ConfigError
from vlmft.evaluation.class_metrics import (
    FIGURES,
    RESAMPLES,
    Predicted,
    bootstrapped,
    confusion,
    draw_confusion,
    figures,
    interval,
    paired_bootstrap,
    require_sklearn,
)


def one_of(
    truth: list[int], prediction: list[int], num_classes: int = 3, scores: np.ndarray | None = None
) -> Predicted:
    rows = np.eye(num_classes, dtype=bool)
    return Predicted(rows[truth], rows[prediction], rows[prediction].astype(float) if scores is None else scores)


def noisy(n: int = 60, seed: int = 0, skill: float = 1.0) -> Predicted:
    truth = np.arange(n) % 3
    logits = np.random.default_rng(seed).normal(size=(n, 3)) + skill * np.eye(3)[truth]
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return one_of(truth.tolist(), scores.argmax(1).tolist(), scores=scores)


def test_figures_by_hand() -> None:
    # Truth a a a b b c; predicted a a b b c c: a 2 of 2 predicted right, of 3; b 1 of 2, of 2; c 1 of 2, of 1.
    found = figures(one_of([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2]))
    assert list(found) == list(FIGURES)
    expected = {
        "accuracy": 4 / 6,
        "precision_macro": (1 + 1 / 2 + 1 / 2) / 3,
        "recall_macro": (2 / 3 + 1 / 2 + 1) / 3,
        "f1_macro": (4 / 5 + 1 / 2 + 2 / 3) / 3,
        "precision_micro": 4 / 6,
        "recall_micro": 4 / 6,
        "f1_micro": 4 / 6,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    # Of a: 2 of 3 above all of the other three, which share 0 with the third: (2 * 3 + 3 / 2) / 9.
    areas = [7.5 / 9, (3 + 0.5 * 3 + 0 + 0.5) / 8, (4 + 0.5) / 5]
    assert found["auroc"] == pytest.approx(np.mean(areas))


def test_several_labels_by_hand() -> None:
    truth = np.array([[1, 1], [0, 1], [0, 0], [1, 0]], dtype=bool)
    prediction = np.array([[1, 1], [1, 1], [0, 0], [0, 0]], dtype=bool)
    found = figures(Predicted(truth, prediction, np.array([[0.9, 0.8], [0.6, 0.7], [0.1, 0.2], [0.4, 0.3]])))
    assert found["accuracy"] == 0.5
    assert found["precision_macro"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["recall_micro"] == pytest.approx(3 / 4)
    assert found["f1_micro"] == pytest.approx(2 * 3 / (4 + 4))
    assert found["auroc"] == pytest.approx((3 / 4 + 1) / 2)


def test_auroc_is_null_where_a_class_has_no_sample() -> None:
    found = figures(one_of([0, 1, 1], [0, 1, 0]))
    assert found["auroc"] is None and found["accuracy"] == pytest.approx(2 / 3)


def test_a_class_that_is_never_predicted_has_precision_0() -> None:
    found = figures(one_of([0, 1, 2], [0, 0, 0]))
    assert found["precision_macro"] == pytest.approx(1 / 9) and found["recall_macro"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", FIGURES)
def test_resamples_are_the_figure_of_what_was_drawn(name: str) -> None:
    predicted = noisy()
    draws = np.random.default_rng(0).integers(0, 60, (RESAMPLES, 60))
    found = bootstrapped(predicted, name)
    assert found.shape == (RESAMPLES,)
    for number in (0, 7, 1998):
        rows = draws[number]
        drawn = Predicted(predicted.truth[rows], predicted.prediction[rows], predicted.scores[rows])
        assert found[number] == pytest.approx(figures(drawn)[name])


def test_the_interval_is_that_of_scipys_percentile_bootstrap() -> None:
    from scipy.stats import bootstrap

    predicted = noisy()
    truth, prediction = predicted.truth.argmax(1), predicted.prediction.argmax(1)
    value = figures(predicted)["f1_macro"]
    assert value == pytest.approx(f1_score(truth, prediction, average="macro"))
    expected = bootstrap(
        (truth, prediction),
        lambda a, b: f1_score(a, b, average="macro"),
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=400,
        rng=1,
    ).confidence_interval
    found = interval(predicted, "f1_macro", value)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.03)
    assert found == interval(predicted, "f1_macro", value) and found.low < value < found.high


def test_an_interval_of_auroc_leaves_out_what_is_undefined() -> None:
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]])
    predicted = one_of([0, 0, 0, 1], [0, 0, 0, 1], 2, scores)
    assert np.isnan(bootstrapped(predicted, "auroc")).any()
    assert roc_auc_score(predicted.truth, scores) == 1
    found = interval(predicted, "auroc", 1.0)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_a_difference_is_as_likely_as_the_resamples_say() -> None:
    better, same = noisy(skill=4.0), noisy(skill=0.0, seed=5)
    assert paired_bootstrap(same, better, "f1_macro") == pytest.approx(2 / (RESAMPLES + 1))
    assert paired_bootstrap(better, same, "f1_macro") == pytest.approx(2 / (RESAMPLES + 1))
    assert paired_bootstrap(better, better, "f1_macro") == 1.0
    assert paired_bootstrap(noisy(seed=8, skill=0.5), noisy(seed=9, skill=0.5), "f1_macro") > 0.05
    with pytest.raises(ValueError, match="their references differ"):
        paired_bootstrap(one_of([0, 1], [0, 1]), one_of([1, 1], [0, 1]), "accuracy")


def test_rows_of_the_confusion_are_the_truth() -> None:
    ((_, counts, names),) = confusion(one_of([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2]), ("a", "b", "c"), multi=False)
    assert counts.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]] and names == ("a", "b", "c")
    truth = np.array([[1, 1], [0, 1], [0, 0], [1, 0]], dtype=bool)
    prediction = np.array([[1, 1], [1, 1], [0, 0], [0, 0]], dtype=bool)
    found = confusion(Predicted(truth, prediction, prediction.astype(float)), ("a", "b"), multi=True)
    assert [(title, counts.tolist(), names) for title, counts, names in found] == [
        ("a", [[1, 1], [1, 1]], ("no", "yes")),
        ("b", [[2, 0], [0, 2]], ("no", "yes")),
    ]


@pytest.mark.parametrize("multi", [False, True])
def test_the_confusion_is_drawn(tmp_path: Path, multi: bool) -> None:
    draw_confusion(tmp_path / "confusion.png", noisy(), ("cat", "dog", "fish"), multi)
    with PIL.Image.open(tmp_path / "confusion.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 200
        assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 3


def test_the_extra_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match=r"trainer=classification needs scikit-learn: pip install 'vlmft\[classif"):
        require_sklearn()
