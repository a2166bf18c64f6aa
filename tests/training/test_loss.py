import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import compose, logits, make_batches, model_inputs, read_llava, with_recipe, write_llava
from vlmft.encoding.collate import IGNORED, Batch
from vlmft.training.loss import supervised_loss


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model() -> Any:
    return with_recipe(compose()).eval()


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """Six samples with and without pictures in one padded micro-batch."""
    (found,) = make_batches(read_llava(write_llava(tmp_path_factory.mktemp("data"))), size=6)
    return found


def by_hand(model: Any, batch: Batch) -> tuple[float, int]:
    """The loss token by token, with plain floats, and how many tokens it is summed over."""
    total, count = 0.0, 0
    for scores, labels in zip(logits(model, batch).tolist(), batch.labels.tolist(), strict=True):
        for before, label in zip(scores, labels[1:], strict=False):  # the logits at s say what stands at s + 1
            if label != IGNORED:
                highest = max(before)
                total -= before[label] - highest - math.log(math.fsum(math.exp(x - highest) for x in before))
                count += 1
    return total, count


def test_is_the_sum_of_the_supervised_tokens_negative_log_likelihoods(model: Any, batch: Batch) -> None:
    expected, count = by_hand(model, batch)
    assert 20 < count < batch.labels.numel() / 4
    assert float(supervised_loss(model, model_inputs(batch), batch.labels)) == pytest.approx(expected, rel=1e-6)


def test_is_the_models_own_loss_times_its_tokens(model: Any, batch: Batch) -> None:
    count = int(batch.labels[:, 1:].ne(IGNORED).sum())
    own = float(model(**model_inputs(batch), labels=batch.labels, use_cache=False).loss)
    assert float(supervised_loss(model, model_inputs(batch), batch.labels)) == pytest.approx(own * count, rel=1e-6)


def test_each_supervised_token_counts_once_and_nothing_else(model: Any, batch: Batch) -> None:
    """The tokens' own losses, taken one at a time, are summed; a label at the first place has no prediction."""
    places = batch.labels[:2, 1:].ne(IGNORED).nonzero() + torch.tensor([0, 1])
    alone = []
    for row, place in places.tolist():
        labels = torch.full_like(batch.labels, IGNORED)
        labels[row, place] = batch.labels[row, place]
        alone.append(float(supervised_loss(model, model_inputs(batch), labels)))
    labels = batch.labels.clone()
    labels[2:] = IGNORED
    labels[:, 0] = 5
    assert min(alone) > 0
    assert float(supervised_loss(model, model_inputs(batch), labels)) == pytest.approx(math.fsum(alone), rel=1e-6)


def test_the_head_sees_the_supervised_places_only(model: Any, batch: Batch) -> None:
    seen: list[torch.Size] = []
    hook = model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    try:
        supervised_loss(model, model_inputs(batch), batch.labels)
    finally:
        hook.remove()
    places = int(batch.labels[:, 1:].ne(IGNORED).any(0).sum())
    assert [shape[:2] for shape in seen] == [(6, places)]
    assert places < batch.labels.shape[1] / 2


def test_is_float32_where_the_model_computes_in_bf16(tmp_path: Path) -> None:
    (batch,) = make_batches(read_llava(write_llava(tmp_path)), size=6)
    model = with_recipe(compose("precision=bf16")).eval()
    loss = supervised_loss(model, model_inputs(batch), batch.labels)
    assert loss.dtype == torch.float32
    exact = float(supervised_loss(with_recipe(compose()).eval(), model_inputs(batch), batch.labels))
    assert float(loss) == pytest.approx(exact, rel=0.02)
    assert float(loss) != exact
