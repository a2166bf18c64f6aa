"""The reference is the model as it stood when the run began, whatever has trained since."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.support import compose, logits, make_batches, read_llava, with_recipe, write_llava
from vlmft.encoding.collate import Batch
from vlmft.training.reference import StartValues, judging, originals


@pytest.fixture
def batch(tmp_path: Any) -> Batch:
    return make_batches(read_llava(write_llava(tmp_path)))[0]


def train(model: Any) -> None:
    """Move every trained weight, as a step would."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)


def check(model: Any, batch: Batch, reference: Callable[[], Any]) -> None:
    start = logits(model, batch)
    train(model)
    trained = logits(model, batch)
    assert (trained - start).abs().max() > 1e-2
    with reference():
        assert not torch.is_grad_enabled()
        assert torch.equal(logits(model, batch), start)
    assert torch.equal(logits(model, batch), trained)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("recipe", ["fft", "ln_vt_lora_llm"])
def test_start_values_give_the_model_of_the_start_under_every_recipe(recipe: str, batch: Batch) -> None:
    model = with_recipe(compose(f"recipe={recipe}"))
    check(model, batch, StartValues(model).put_in)


def test_adapters_off_give_the_model_of_the_start_where_all_that_trains_is_peft_s(batch: Batch) -> None:
    model = with_recipe(compose("recipe=ln_vt_lora_llm"))
    check(model, batch, lambda: originals(model))


def test_what_is_trained_and_what_the_optimiser_holds_are_untouched(batch: Batch) -> None:
    model = with_recipe(compose("recipe=projector"))
    start = StartValues(model)
    trained = next(p for p in model.parameters() if p.requires_grad)
    optimizer = torch.optim.SGD([trained], lr=1.0)
    train(model)
    before = trained.detach().clone()
    trained.grad = torch.ones_like(trained)
    with start.put_in():
        logits(model, batch)
    assert torch.equal(trained.grad, torch.ones_like(trained))
    optimizer.step()
    assert torch.equal(trained, before - 1)
    with start.put_in():
        assert not torch.equal(trained, before - 1)


def test_an_error_inside_leaves_the_trained_values(batch: Batch) -> None:
    model = with_recipe(compose("recipe=projector"))
    start = StartValues(model)
    train(model)
    trained = logits(model, batch)
    with pytest.raises(ZeroDivisionError), start.put_in():
        1 / 0  # noqa: B018
    assert torch.equal(logits(model, batch), trained)


def test_adapters_that_were_frozen_stay_frozen() -> None:
    model = with_recipe(compose("recipe=ln_vt_lora_llm"))
    frozen = next(p for name, p in model.named_parameters() if "lora_A" in name)
    frozen.requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    with originals(model):
        pass
    assert [p.requires_grad for p in model.parameters()] == before


def test_judging_puts_the_mode_back() -> None:
    model = torch.nn.Dropout()
    with judging(model):
        assert not model.training
    assert model.training
    model.eval()
    with judging(model):
        pass
    assert not model.training
