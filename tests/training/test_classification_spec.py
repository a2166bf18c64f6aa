from typing import Any

import pytest
import torch

from tests.support import compose, literally
from vlmft.config.spec import validate
from vlmft.errors import ConfigError
from vlmft.training import (
    BalancedSampler,
    Classification,
    CrossEntropy,
    EarlyStopping,
    Focal,
    NaturalSampler,
    WeightedSampler,
)

COUNTS = {"cat": 4, "dog": 1}
LOGITS = torch.tensor([[0.5, -1.0], [2.0, 0.3]])


def test_each_loss_of_conf_is_the_one_that_it_is_called() -> None:
    losses = {
        name: compose("trainer=classification", f"trainer/loss={name}").trainer.loss  # type: ignore[attr-defined]
        for name in ("cross_entropy", "focal", "class_balanced", "class_balanced_focal")
    }
    assert losses == {
        "cross_entropy": CrossEntropy(label_smoothing=0.0, beta=None),
        "focal": Focal(gamma=2.0, alpha=None, beta=None),
        "class_balanced": CrossEntropy(label_smoothing=0.0, beta=0.999),
        "class_balanced_focal": Focal(gamma=2.0, alpha=None, beta=0.999),
    }


@pytest.mark.parametrize(
    ("spec", "values", "message"),
    [
        (Focal, {"gamma": 2, "alpha": [1, 2], "beta": 0.9}, "alpha and beta both weigh the classes"),
        (Focal, {"gamma": -1, "alpha": None, "beta": None}, "gamma: Input should be greater than or equal to 0"),
        (CrossEntropy, {"label_smoothing": 1, "beta": None}, "label_smoothing: Input should be less than 1"),
        (CrossEntropy, {"label_smoothing": 0, "beta": 1}, "beta: Input should be less than 1"),
        (CrossEntropy, {"label_smoothing": 0, "beta": None, "gamma": 2}, "gamma: unknown key: Focal has it"),
        (EarlyStopping, {"patience": None, "threshold": 0.1}, "threshold=0.1 needs patience"),
        (EarlyStopping, {"patience": 0, "threshold": 0}, "patience: Input should be greater than or equal to 1"),
        (WeightedSampler, {"weights": {"cat": 0}}, "weights.cat: Input should be greater than 0"),
    ],
)
def test_a_contradiction_is_refused(spec: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=literally(message)):
        validate(spec, values)


def test_the_head_has_one_rate() -> None:
    found = compose("trainer=classification", "trainer.head.lr=0.01", "trainer.head.lr_factor=null").trainer
    assert isinstance(found, Classification) and found.head.rate(1e-4) == 0.01
    assert compose("trainer=classification").trainer.head.rate(1e-4) == 1e-4  # type: ignore[attr-defined]
    values = found.head.to_config() | {"lr_factor": 2.0}
    with pytest.raises(ConfigError, match="lr and lr_factor are two rates for it; set one of them"):
        validate(type(found.head), values)


def test_alpha_is_one_weight_a_class() -> None:
    loss = Focal(gamma=2.0, alpha=(1.0, 2.0, 3.0), beta=None)
    with pytest.raises(ConfigError, match=literally("trainer.loss.alpha: 3 weights for 2 classes (cat, dog)")):
        loss.check(("cat", "dog"), COUNTS, multi=False)
    with pytest.raises(ConfigError, match=literally("trainer.loss.alpha: 2.0 is above 1")):
        Focal(gamma=2.0, alpha=(1.0, 2.0), beta=None).check(("cat", "dog"), COUNTS, multi=True)
    Focal(gamma=2.0, alpha=(0.2, 1.0), beta=None).check(("cat", "dog"), COUNTS, multi=True)


def test_an_empty_class_is_refused_where_it_would_be_weighed() -> None:
    with pytest.raises(ConfigError, match="dog has no training sample"):
        CrossEntropy(label_smoothing=0.0, beta=0.9).check(("cat", "dog"), {"cat": 1, "dog": 0}, multi=False)
    CrossEntropy(label_smoothing=0.0, beta=None).check(("cat", "dog"), {"cat": 1, "dog": 0}, multi=False)


def test_weights_reach_the_loss() -> None:
    spec = compose("trainer=classification").trainer
    assert isinstance(spec, Classification)
    one, several = spec.targets_of([(1,), (0,)], 2, False), spec.targets_of([(0, 1), ()], 2, True)
    assert one.tolist() == [1, 0] and several.tolist() == [[1, 1], [0, 0]]
    plain, balanced = CrossEntropy(label_smoothing=0.0, beta=None), CrossEntropy(label_smoothing=0.0, beta=0.5)
    # 1/2 / (1 - 1/16) = 8/15 of four samples and 1 of one, scaled to a mean of 1.
    assert plain.class_weights(COUNTS) is None
    weights = torch.tensor(balanced.class_weights(COUNTS))
    torch.testing.assert_close(weights, torch.tensor([16 / 23, 30 / 23]))
    for focus in (None, Focal(gamma=2.0, alpha=None, beta=0.5)):
        loss = focus or balanced
        ratio = loss.per_sample(LOGITS, one, weights, False) / loss.per_sample(LOGITS, one, None, False)
        torch.testing.assert_close(ratio, weights[one])
    alpha = Focal(gamma=2.0, alpha=(0.3, 0.9), beta=None)
    without = Focal(gamma=2.0, alpha=None, beta=None)
    ratio = alpha.per_sample(LOGITS, one, None, False) / without.per_sample(LOGITS, one, None, False)
    torch.testing.assert_close(ratio, torch.tensor([0.9, 0.3]))
    assert not torch.equal(
        alpha.per_sample(LOGITS, several, None, True), without.per_sample(LOGITS, several, None, True)
    )


def test_samplers_give_shares() -> None:
    assert NaturalSampler().shares(COUNTS) is None
    assert BalancedSampler().shares(COUNTS) == {"cat": 1.0, "dog": 1.0}
    assert WeightedSampler(weights={"dog": 3, "cat": 1}).shares(COUNTS) == {"cat": 1, "dog": 3}
    with pytest.raises(
        ConfigError,
        match="trainer.sampler.weights: no weight for dog; weights for dgo, which are no classes of the data",
    ):
        WeightedSampler(weights={"cat": 1, "dgo": 3}).shares(COUNTS)
