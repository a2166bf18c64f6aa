"""In bf16, trained weights in float32 stand beside frozen ones in bf16, in every family's training and generation."""

import pytest
import torch

from tests.models.families import FAMILIES, Family
from tests.models.test_matrix import batches, inputs, prompt
from tests.support import compose, with_recipe
from vlmft.training.loss import supervised_loss

EACH = [
    pytest.param(f, marks=() if f.name in ("qwen3vl", "internvl3") else pytest.mark.slow, id=f.name) for f in FAMILIES
]


@pytest.mark.parametrize("recipe", ["fft_llm", "fft_vt", "lora_llm"])
@pytest.mark.parametrize("family", EACH)
def test_every_family_trains_and_answers_in_bf16(family: Family, recipe: str) -> None:
    """What `generate` does by itself, outside of the model's forward, is done in the same precision as there."""
    model = with_recipe(compose(f"model=tiny_{family.name}", f"recipe={recipe}", "precision=bf16"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32, torch.bfloat16}
    for batch in batches(family):
        loss = supervised_loss(model.train(), inputs(family, batch), batch.labels)
        assert loss.isfinite()
        if loss.requires_grad:  # not of a text alone under a frozen LLM
            loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    assert trained and all(parameter.grad.isfinite().all() for parameter in trained)
    asked_for = prompt(family)
    with torch.no_grad():
        expected = model.eval()(**asked_for, use_cache=False).logits[0, -1].argmax()
        answer = model.generate(**asked_for, max_new_tokens=3, do_sample=False)
    assert answer[0, asked_for["input_ids"].shape[1]] == expected
