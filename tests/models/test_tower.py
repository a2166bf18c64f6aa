"""The vision tower in few calls gives what it gives by transformers' own: features and gradients."""

import copy
from typing import Any

import pytest
import torch

from tests.models.families import FAMILIES, Family
from tests.support import compose, with_recipe
from vlmft.models import tower
from vlmft.models.tower import SEGMENTS, use_fast_tower

SEGMENTED = {"qwen2vl", "qwen25vl", "qwen3vl", "qwen3vl_moe", "qwen35", "glm4v", "glm4v_moe", "glm46v"}
CHECKED = [
    pytest.param(family, id=family.name, marks=() if family.name in ("qwen25vl", "llava15") else pytest.mark.slow)
    for family in FAMILIES
]


def of(model: Any, grid: torch.Tensor, pixels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The tower's features of pictures, and the gradients of its weights by their squares' sum."""
    found = model.model.get_image_features(pixels, grid).pooler_output
    features = torch.cat(list(found))
    features.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return features, gradients


@pytest.mark.parametrize("family", CHECKED)
def test_few_calls_give_the_features_and_gradients_of_many(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = with_recipe(compose(f"model=tiny_{family.name}", "recipe=fft", "precision=fp32"))
    fast = copy.deepcopy(plain)
    use_fast_tower(fast)
    calls = 0
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return sdpa(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    if family.name not in SEGMENTED:
        assert {type(a) for a in fast.modules()} == {type(a) for a in plain.modules()}
        assert SEGMENTS not in {
            getattr(m.config, "_attn_implementation", "") for m in fast.modules() if hasattr(m, "config")
        }
        return
    torch.manual_seed(0)
    grid = torch.tensor([[1, 10, 6], [1, 4, 4], [1, 6, 10], [1, 4, 4], [1, 4, 6]])
    pixels = torch.randn(int(grid.prod(1).sum()), 3 * 2 * plain.config.vision_config.patch_size**2)
    (expected, reference), slow_calls = of(plain, grid, pixels), calls
    calls = 0
    features, gradients = of(fast, grid, pixels)
    assert torch.allclose(features, expected, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == reference.keys()
    largest = max(float(g.abs().max()) for g in reference.values())
    assert max(float((gradients[name] - reference[name]).abs().max()) for name in reference) < 1e-5 * largest
    assert 0 < calls < slow_calls
    assert {name for name, _ in fast.named_parameters()} == {name for name, _ in plain.named_parameters()}
    assert "vlmft" not in fast.config.to_json_string()


def test_one_kernel_is_told_where_segments_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for torch's kernel, which runs on CUDA alone: what is asked of it, not what it computes."""
    told: list[Any] = []

    def kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *ends: Any, **options: Any) -> torch.Tensor:
        told.extend([query.shape, *ends, options])
        return value

    monkeypatch.setattr(tower, "_varlen", lambda: (kernel, frozenset()))
    rows, ends = torch.randn(5, 2, 4), torch.tensor([0, 3, 5], dtype=torch.int32)
    assert tower._one_call([rows, rows, rows], ends, 3, 0.5) is rows
    assert told[0] == (5, 2, 4) and told[1] is ends and told[2] is ends and told[3:] == [3, 3, {"scale": 0.5}]
