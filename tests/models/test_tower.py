"""The vision tower in few calls gives what it gives by transformers' own: features and gradients."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.families import FAMILIES, Family, asked, encoder_of, picture, processor_of, video
from tests.support import compose, with_recipe
from vlmft.encoding.collate import Collator
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


@pytest.mark.parametrize("family", [one for one in CHECKED if one.id in SEGMENTED])
def test_the_collator_works_out_what_the_tower_would(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_recipe(compose(f"model=tiny_{family.name}", "recipe=lora_llm", "precision=fp32"))
    use_fast_tower(model)
    parts = [asked(picture(tmp_path, 56, 84), picture(tmp_path, 140, 56, 1), "Which?"), asked("None?")]
    if family.mixed:
        parts.append(asked(video(tmp_path, 4, 60, 90), "What happens?"))
    samples = [encoder_of(family).encode(sample) for sample in parts]
    inputs, labels = Collator(family.spec, processor_of(family.name)).for_loss(samples, model)
    given = {name for name in inputs if name.startswith(("image_", "video_")) and not name.endswith("grid_thw")}
    file = sys.modules[type(model.get_base_model().model.visual).__module__]
    own: dict[str, Any] = {}

    def told(name: str, plain: Any) -> Any:
        def function(*args: Any, **kwargs: Any) -> Any:
            own.setdefault(name, []).append(plain(*args, **kwargs))
            return own[name][-1]

        return function

    waits = 0

    def counted(plain: Any) -> Any:
        def method(*args: Any) -> Any:
            nonlocal waits
            waits += 1
            return plain(*args)

        return method

    for name in {name for name in vars(file) if name.startswith("get_vision_")}:
        monkeypatch.setattr(file, name, told(name, getattr(file, name)))
    for name in ("tolist", "item"):
        monkeypatch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))
    with torch.no_grad():
        found = model(**inputs, use_cache=False).logits
        saved, waits, own_given = waits, 0, dict(own)
        own.clear()
        expected = model(**{name: inputs[name] for name in inputs.keys() - given}, use_cache=False).logits
    asked_for = waits
    assert torch.equal(found, expected)
    # Three times for pictures and for videos; for windows twice more, and once a medium.
    assert asked_for - saved == 3 * (1 + family.mixed) + (7 if "get_vision_window_index" in own else 0)
    assert own.keys() == own_given.keys() and len(own) >= 2
    for name, values in own.items():
        for mine, theirs in zip(own_given[name], values, strict=True):
            flat = (mine, theirs) if isinstance(mine, tuple) else ((mine,), (theirs,))
            assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(*flat, strict=True))


def test_one_kernel_is_told_where_segments_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for torch's kernel, which runs on CUDA alone: what is asked of it, not what it computes."""
    told: list[Any] = []

    def kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *ends: Any, **options: Any) -> torch.Tensor:
        told.extend([query.shape, *ends, options])
        return value

    monkeypatch.setattr(tower, "varlen", lambda: (kernel, frozenset()))
    rows, ends = torch.randn(5, 2, 4), torch.tensor([0, 3, 5], dtype=torch.int32)
    assert tower._one_call([rows, rows, rows], ends, 3, 0.5) is rows
    assert told[0] == (5, 2, 4) and told[1] is ends and told[2] is ends and told[3:] == [3, 3, {"scale": 0.5}]
