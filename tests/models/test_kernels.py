"""What kernels a model computes with is found by looking at it, and `model.kernels` is kept or refused.

liger-kernel is not among the tests' packages: what is put into a model here is a stand-in, whose functions say that
they are of `liger_kernel`, and which changes modules in the two ways of the real one. It shows that what is there is
found; not that Liger's kernels compute what they replace.
"""

from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

from tests.models.families import FAMILIES, Family
from tests.support import CPU, compose, literally, tiny
from vlmft.errors import ConfigError
from vlmft.models import kernels
from vlmft.models.components import component_of
from vlmft.models.kernels import KernelsInUse, kernels_in_use, use_kernels
from vlmft.recipes.apply import apply_recipe
from vlmft.recipes.table import component_kernels

SDPA = {"vision_tower": ("sdpa",), "llm": ("sdpa",)}
NONE = KernelsInUse(attention=SDPA, fused={})


def loaded(**changes: Any) -> Any:
    return tiny().model_copy(update=changes).load_model(CPU)


def in_use(model: Any) -> KernelsInUse:
    return kernels_in_use(model, lambda name: component_of(name, tiny().component_paths))


class LigerRMSNorm(torch.nn.Module):
    """The stand-in for one of Liger's classes, whose forward is given to modules of another."""

    weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


def liger_rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return q, k


LigerRMSNorm.forward.__module__ = "liger_kernel.transformers.rms_norm"
liger_rotary.__module__ = "liger_kernel.transformers.rope"


def put_norms(model: Any, options: Any) -> None:
    """Change the LLM's norms as Liger does; the loss is never asked for."""
    assert options == {"cross_entropy": False, "fused_linear_cross_entropy": False}
    for module in model.model.language_model.modules():
        if type(module).__name__ == "Qwen2_5_VLRMSNorm":
            module.__dict__["forward"] = MethodType(LigerRMSNorm.forward, module)


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As if liger-kernel were installed, and the model on a GPU; takes what stands in for its patching."""

    def install(patch: Any, device: str = "cuda") -> None:
        monkeypatch.setattr("transformers.utils.is_liger_kernel_available", lambda: True)
        monkeypatch.setattr("transformers.integrations.liger.apply_liger_kernel", patch)
        monkeypatch.setattr(kernels, "_release", lambda: "liger-kernel 9 with transformers 5")
        monkeypatch.setattr("transformers.PreTrainedModel.device", torch.device(device))

    return install


@pytest.fixture
def no_liger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.is_liger_kernel_available", lambda: False)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_is_what_the_modules_ask_for(attention: str) -> None:
    assert in_use(loaded(attention=attention)).attention == {"vision_tower": (attention,), "llm": (attention,)}


def computes_by_itself(self: Any, x: Tensor) -> Tensor:
    return x


def test_attention_may_differ_between_components_and_within_one() -> None:
    model = loaded()
    model.set_attn_implementation({"vision_config": "eager"})
    assert in_use(model).attention == {"vision_tower": ("eager",), "llm": ("sdpa",)}
    attention = model.model.language_model.layers[1].self_attn
    attention.forward = MethodType(computes_by_itself, attention)
    assert in_use(model).attention == {"vision_tower": ("eager",), "llm": ("own", "sdpa")}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_each_family_asks_for_what_its_yaml_says(family: Family) -> None:
    found = component_kernels(family.spec.load_model(CPU), family.spec)
    expected = SDPA | {"llm": (family.llm_attention,)}
    assert found.attention.items() >= expected.items() and not found.fused


@pytest.mark.parametrize("wanted", ["none", "auto"])
def test_a_plain_model_stays_plain(no_liger: None, wanted: Any) -> None:
    model = loaded()
    before = {name: module.forward for name, module in model.named_modules()}
    reason = use_kernels(model, wanted)
    assert reason == {"none": None, "auto": "liger-kernel is not installed (pip install liger-kernel)"}[wanted]
    assert {name: module.forward for name, module in model.named_modules()} == before
    assert in_use(model) == NONE


def test_what_was_put_in_is_found_below_adapters_and_in_their_copies(liger: Any) -> None:
    config = compose("recipe=ln_vt_lora_llm")
    model = loaded()
    liger(put_norms)
    assert use_kernels(model, "liger") is None
    assert in_use(model) == KernelsInUse(attention=SDPA, fused={"llm": ("LigerRMSNorm",)})
    norm = model.model.visual.blocks[0].norm1  # a copy of it trains under this recipe
    norm.__dict__["forward"] = MethodType(LigerRMSNorm.forward, norm)
    wrapped = apply_recipe(model, config.recipe, config.model, torch.float32)
    fused = {"vision_tower": ("LigerRMSNorm",), "llm": ("LigerRMSNorm",)}
    assert component_kernels(wrapped, config.model) == KernelsInUse(attention=SDPA, fused=fused)
    copy = wrapped.get_base_model().model.visual.blocks[0].norm1.modules_to_save["default"]
    assert copy.forward.__func__ is LigerRMSNorm.forward and copy.forward.__self__ is copy


@pytest.mark.parametrize(
    ("name", "component"), [("apply_rotary_pos_emb", "llm"), ("apply_rotary_pos_emb_vision", "vision_tower")]
)
def test_a_rotation_put_into_the_classes_file_is_found(
    liger: Any, monkeypatch: pytest.MonkeyPatch, name: str, component: str
) -> None:
    liger(lambda model, options: monkeypatch.setattr(modeling_qwen2_5_vl, name, liger_rotary))
    model = loaded()
    assert use_kernels(model, "auto") is None
    assert in_use(model) == KernelsInUse(attention=SDPA, fused={component: (kernels.ROTARY,)})


def test_a_rotation_that_no_code_calls_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "apply_multimodal_rotary_pos_emb"  # of an earlier transformers; Liger still sets it
    monkeypatch.setattr(modeling_qwen2_5_vl, name, liger_rotary, raising=False)
    assert in_use(loaded()) == NONE


def fail(model: Any, options: Any) -> None:
    raise ImportError("cannot import name 'LigerOutput'")


def fail_late(model: Any, options: Any) -> None:
    put_norms(model, options)
    raise AttributeError("no attribute 'visual'")


@pytest.mark.parametrize(
    ("patch", "device", "reason"),
    [
        (
            fail,
            "cuda",
            "liger-kernel 9 with transformers 5 fails on Qwen2_5_VLForConditionalGeneration: cannot import name "
            "'LigerOutput'",
        ),
        (
            lambda model, options: None,
            "cuda",
            "liger-kernel 9 with transformers 5 knows no Qwen2_5_VLForConditionalGeneration, and has changed "
            "nothing in it",
        ),
        (put_norms, "cpu", "its kernels need a CUDA device, and this model is on cpu"),
    ],
    ids=["fails", "unknown", "cpu"],
)
def test_what_cannot_be_had_is_said_or_refused(liger: Any, patch: Any, device: str, reason: str) -> None:
    liger(patch, device)
    model = loaded()
    assert use_kernels(model, "auto") == reason
    assert in_use(model) == NONE
    message = f"model.kernels: liger is not to be had: {reason}; take kernels=auto or none"
    with pytest.raises(ConfigError, match=f"^{literally(message)}$"):
        use_kernels(model, "liger")


def test_liger_without_liger_is_refused(no_liger: None) -> None:
    with pytest.raises(ConfigError, match=literally("liger-kernel is not installed (pip install liger-kernel); take")):
        use_kernels(loaded(), "liger")


@pytest.mark.parametrize("wanted", ["auto", "liger"])
def test_a_model_that_is_changed_by_half_is_refused(liger: Any, wanted: Any) -> None:
    liger(fail_late)
    message = (
        "model.kernels: liger-kernel 9 with transformers 5 fails on Qwen2_5_VLForConditionalGeneration after it has "
        "put LigerRMSNorm into it: no attribute 'visual'; take kernels=none"
    )
    with pytest.raises(ConfigError, match=f"^{literally(message)}$"):
        use_kernels(loaded(), wanted)
