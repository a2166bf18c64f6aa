import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torchvision.ops import sigmoid_focal_loss

from tests.support import literally
from vlmft.errors import ConfigError
from vlmft.training.class_loss import binary_cross_entropy, binary_focal, cross_entropy, focal
from vlmft.training.classification_spec import class_balanced_weights

# Of two samples and three classes: probabilities (1/2, 1/4, 1/4) and (1/10, 2/10, 7/10).
P = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
LOGITS = P.log() + torch.tensor([[3.0], [-1.0]])
TRUTH = torch.tensor([1, 2])
W = torch.tensor([0.5, 2.0, 3.0])


def random(rows: int = 16, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, classes, generator=generator) * 3
    return (
        logits,
        torch.randint(classes, (rows,), generator=generator),
        (torch.rand(rows, classes, generator=generator) > 0.6).float(),
    )


def test_cross_entropy_by_hand() -> None:
    torch.testing.assert_close(cross_entropy(LOGITS, TRUTH), torch.tensor([math.log(4), -math.log(0.7)]))
    torch.testing.assert_close(cross_entropy(LOGITS, TRUTH, W), torch.tensor([2 * math.log(4), -3 * math.log(0.7)]))
    smooth = [0.7 * math.log(4) + 0.1 * (math.log(2) + 2 * math.log(4)), 0.0]
    smooth[1] = -0.7 * math.log(0.7) - 0.1 * (math.log(0.1) + math.log(0.2) + math.log(0.7))
    torch.testing.assert_close(cross_entropy(LOGITS, TRUTH, smoothing=0.3), torch.tensor(smooth))


def test_focal_by_hand() -> None:
    expected = torch.tensor([0.75**2 * math.log(4), 0.3**2 * -math.log(0.7)])
    torch.testing.assert_close(focal(LOGITS, TRUTH, 2.0), expected)
    torch.testing.assert_close(focal(LOGITS, TRUTH, 2.0, W), expected * W[TRUTH])


def test_focal_of_gamma_0_is_the_cross_entropy() -> None:
    logits, truth, several = random()
    torch.testing.assert_close(focal(logits, truth, 0.0), F.cross_entropy(logits, truth, reduction="none"))
    torch.testing.assert_close(binary_focal(logits, several, 0.0), binary_cross_entropy(logits, several))


def test_binary_cross_entropy_is_torchs_mean_over_the_classes() -> None:
    logits, _, several = random()
    expected = F.binary_cross_entropy_with_logits(logits, several, reduction="none")
    torch.testing.assert_close(binary_cross_entropy(logits, several), expected.mean(1))
    weights = torch.tensor([1.0, 2.0, 0.5, 0.1, 1.4])
    torch.testing.assert_close(binary_cross_entropy(logits, several, weights), (weights * expected).mean(1))
    smoothed = F.binary_cross_entropy_with_logits(logits, several * 0.8 + 0.1, reduction="none").mean(1)
    torch.testing.assert_close(binary_cross_entropy(logits, several, smoothing=0.2), smoothed)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 3.5])
def test_binary_focal_is_torchvisions(gamma: float) -> None:
    logits, _, several = random()
    expected = sigmoid_focal_loss(logits, several, alpha=-1, gamma=gamma)
    torch.testing.assert_close(binary_focal(logits, several, gamma), expected.mean(1))
    alpha = torch.full((5,), 0.25)
    expected = sigmoid_focal_loss(logits, several, alpha=0.25, gamma=gamma)
    torch.testing.assert_close(binary_focal(logits, several, gamma, alpha), expected.mean(1))
    weights = torch.tensor([1.0, 2.0, 0.5, 0.1, 1.4])
    torch.testing.assert_close(binary_focal(logits, several, gamma, alpha, weights), (weights * expected).mean(1))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_what_is_surely_right_costs_nothing_and_has_a_gradient(gamma: float) -> None:
    logits = torch.tensor([[60.0, -60.0]], requires_grad=True)
    loss = focal(logits, torch.tensor([0]), gamma) + binary_focal(logits, torch.tensor([[1.0, 0.0]]), gamma)
    loss.sum().backward()
    assert float(loss.detach()) < 1e-20 and logits.grad is not None and logits.grad.isfinite().all()


def test_half_precision_logits_are_computed_in_float32() -> None:
    logits, truth, several = random()
    half = logits.bfloat16()
    for found, wanted in [
        (focal(half, truth, 2.0), focal(half.float(), truth, 2.0)),
        (cross_entropy(half, truth), cross_entropy(half.float(), truth)),
        (binary_focal(half, several, 2.0), binary_focal(half.float(), several, 2.0)),
        (binary_cross_entropy(half, several), binary_cross_entropy(half.float(), several)),
    ]:
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted)


def test_class_balanced_weights_by_hand() -> None:
    # beta = 1/2: 0.5 / (1 - 0.5) = 1 of one sample, 0.5 / (1 - 0.25) = 2/3 of two, 0.5 / (1 - 1/16) = 8/15 of four.
    raw = [1, 2 / 3, 8 / 15]
    found = class_balanced_weights({"a": 1, "b": 2, "c": 4}, 0.5)
    assert found == pytest.approx([weight * 3 / sum(raw) for weight in raw])
    assert sum(found) == pytest.approx(3)
    near_one = class_balanced_weights({"a": 10, "b": 1000}, 1 - 1e-9)
    assert near_one[0] / near_one[1] == pytest.approx(100, rel=1e-3)


def test_an_empty_class_has_no_weight() -> None:
    with pytest.raises(ConfigError, match=literally("trainer.loss.beta: dog, fish have no training sample")):
        class_balanced_weights({"cat": 3, "dog": 0, "fish": 0}, 0.9)
