"""A run computes in its precision wherever it computes: training, and what `generate` does around its forwards."""

import pytest
import torch

from tests.models.families import FAMILIES, Family
from tests.models.test_matrix import prompt
from tests.support import compose, with_recipe


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=() if f.name in ("internvl3", "llava15") else pytest.mark.slow) for f in FAMILIES],
    ids=lambda family: family.name,
)
@torch.no_grad()
def test_a_model_in_bf16_answers_about_a_picture(family: Family) -> None:
    """The projector trains in float32 behind a tower in bfloat16; generate encodes pictures before any forward."""
    model = with_recipe(compose(f"model=tiny_{family.name}", "recipe=lora_vt_llm", "precision=bf16")).eval()
    inputs = prompt(family)
    first = model(**inputs, use_cache=False).logits[:, -1]
    found = model.generate(**inputs, max_new_tokens=2, output_logits=True, return_dict_in_generate=True)
    assert found.logits[0].float() == pytest.approx(first.float(), rel=0.05, abs=0.05)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16, torch.float32}
