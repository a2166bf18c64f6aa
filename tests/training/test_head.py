"""Head and cross entropy in chunks give the plain form's losses and gradients, and keep no logits."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.families import FAMILIES, Family, asked, collator_of, encoder_of, picture
from tests.support import compose, with_recipe
from vlmft.training import head
from vlmft.training.loss import keep_a_gradient, supervised_loss, supervised_places, token_log_probs

BY_NAME = {family.name: family for family in FAMILIES}


def micro_batch(family: Family, folder: Path, model: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Three samples whose answers stand at different places: more places than supervised tokens."""
    samples = [
        asked(picture(folder, 56, 56), "What colour?", answer="red and blue, not green"),
        asked("A longer question, without a picture, about the sky over a field?", answer="blue"),
        asked("Yes?", answer="no, never"),
    ]
    return collator_of(family).on_device([encoder_of(family).encode(sample) for sample in samples], model)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize(
    ("name", "recipe", "tied", "trains"),
    [
        ("qwen25vl", "fft", True, True),
        ("qwen25vl", "lora_llm", True, False),
        pytest.param("glm4v", "fft", False, True, marks=pytest.mark.slow),
        pytest.param("glm4v", "lora_llm", False, False, marks=pytest.mark.slow),
        pytest.param("qwen25vl", "head", True, True, marks=pytest.mark.slow),
    ],
)
def test_losses_and_gradients_are_the_plain_forms(
    name: str, recipe: str, tied: bool, trains: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["recipe=lora_llm", "recipe.llm.targets=[q_proj,lm_head]"] if recipe == "head" else [f"recipe={recipe}"]
    model = with_recipe(compose(f"model=tiny_{name}", "precision=fp32", *words)).train()
    keep_a_gradient(model)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    weights = base.get_output_embeddings()
    assert any(p.requires_grad for p in weights.parameters()) == trains
    assert base.config.get_text_config().tie_word_embeddings == tied
    inputs, labels = micro_batch(BY_NAME[name], tmp_path, model)
    expected = supervised_loss(model, inputs, labels)
    expected.backward()
    reference = gradients(model)
    log_probs, places = token_log_probs(model, inputs, labels, 0.7)

    monkeypatch.setattr(head, "CHUNK_BYTES", 4 * weights.out_features * 3)
    assert head.gives_its_heads(model, inputs, supervised_places(labels)[0])
    seen: list[int] = []
    weights.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved.shape) or saved, lambda saved: saved):
        found = supervised_loss(model, inputs, labels)
    found.backward()
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    mine = gradients(model)
    assert mine.keys() == reference.keys()
    largest = max(float(gradient.abs().max()) for gradient in reference.values())
    assert max(float((mine[name] - reference[name]).abs().max()) for name in mine) < 1e-6 * largest
    assert len(seen) == 1 and weights.out_features not in {shape[-1] for shape in kept if len(shape) > 1}
    chunked, same = token_log_probs(model, inputs, labels, 0.7)
    assert torch.equal(same, places) and torch.allclose(chunked, log_probs, atol=1e-5)
    with torch.no_grad():
        assert float(supervised_loss(model, inputs, labels)) == pytest.approx(float(expected), rel=1e-6)
    assert "forward" not in weights.__dict__


def test_a_model_that_does_more_to_logits_keeps_the_plain_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_recipe(compose("model=tiny_qwen25vl", "recipe=fft", "precision=fp32"))
    plain = type(model).forward

    class Capped(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = plain(self, *args, **kwargs)
            output.logits = 5 * torch.tanh(output.logits / 5)
            return output

    model.__class__ = Capped
    inputs, labels = micro_batch(BY_NAME["qwen25vl"], tmp_path, model)
    expected = float(supervised_loss(model, inputs, labels).detach())
    monkeypatch.setattr(head, "CHUNK_BYTES", 1000)
    for _ in range(2):
        assert float(supervised_loss(model, inputs, labels).detach()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("does_more", [False, True])
def test_a_model_wrapped_for_ranks_goes_forward_once_a_loss(
    does_more: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks whose micro-batches are small do not try: one more forward pass of DDP would wait for them for ever."""

    class Wrapper(torch.nn.Module):
        calls = 0

        def __init__(self, module: Any) -> None:
            super().__init__()
            self.module = module

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return self.module(*args, **kwargs)

    words = ["recipe=lora_llm", "recipe.llm.dropout=0.5", "precision=fp32"]
    model = with_recipe(compose("model=tiny_qwen25vl", *words)).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # 0 at the start: dropout would change nothing
            torch.nn.init.normal_(parameter, std=0.1)
    if does_more:  # before keep_a_gradient's hook, as a forward pass of its own would
        base = model.get_base_model()
        base.register_forward_hook(lambda module, args, output: setattr(output, "logits", 2 * output.logits))
    keep_a_gradient(model)
    inputs, labels = micro_batch(BY_NAME["qwen25vl"], tmp_path, model)
    torch.manual_seed(0)
    expected = [float(supervised_loss(model, inputs, labels).detach()) for _ in range(2)]
    monkeypatch.setattr(head, "CHUNK_BYTES", 1000)
    wrapped = Wrapper(model)
    torch.manual_seed(0)
    for number in (1, 2):
        loss = supervised_loss(wrapped, inputs, labels)
        assert wrapped.calls == number and float(loss.detach()) == pytest.approx(expected[number - 1], rel=1e-6)
    loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())
    assert expected[0] != expected[1]  # dropout draws, and the trial draws nothing
