"""Components are found by looking: as the families name them, or the class is refused."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.models.families import FAMILIES, Family
from tests.support import literally
from vlmft.errors import ConfigError
from vlmft.models.anatomy import dissect, family_of
from vlmft.models.components import parameters_by_component


def some(*fast: str) -> pytest.MarkDecorator:
    """All families, of which `make test` takes those named."""
    params = [pytest.param(family, marks=() if family.name in fast else pytest.mark.slow) for family in FAMILIES]
    return pytest.mark.parametrize("family", params, ids=lambda family: family.name)


@some("qwen3vl", "llava15", "pixtral")
def test_the_family_that_fits_a_model_type_is_named(family: Family) -> None:
    assert family_of(AutoConfig.from_pretrained(family.spec.folder())) == family.name


@pytest.mark.parametrize("model_type", ["idefics", "qwen", "auto", "tiny_llava15", "llav", "gemma3n"])
def test_no_family_fits_a_model_type(model_type: str) -> None:
    assert family_of(SimpleNamespace(model_type=model_type)) is None


@some("qwen3vl", "llava_next", "mllama")
def test_the_components_are_those_that_the_family_names(family: Family) -> None:
    model = family.spec.skeleton()
    found = dissect(model)
    mine, its = (
        {name: set(group) for name, group in parameters_by_component(model, paths).items()}
        for paths in (found.component_paths, family.spec.component_paths)
    )
    assert mine == its
    in_one_list = {name: path for name, path in family.spec.block_paths.items() if isinstance(path, str)}
    assert found.block_paths == in_one_list and found.bare_parameters == family.spec.bare_parameters
    assert [line.partition(":")[0] for line in found.describe()] == ["vision_tower", "projector", "llm"]


SECOND = "is a second tower, a generator or part of the projector cannot be told"


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        (
            "janus",
            "model=auto: JanusForConditionalGeneration: beside its tower (model.vision_model) and its LLM "
            "(model.language_model) it has model.vqmodel (JanusVQVAE), a model by itself: whether that " + SECOND,
        ),
        (
            "video_llava",
            "model=auto: VideoLlavaForConditionalGeneration: beside its tower (model.image_tower) and its LLM "
            "(model.language_model) it has model.video_tower (CLIPVisionModel), a model by itself: whether that "
            + SECOND,
        ),
        (
            "deepseek_vl_hybrid",
            "it has model.high_res_vision_model (SamVisionModel), a model by itself: whether that " + SECOND,
        ),
        ("dots3_note", "it has an audio encoder (model.audio_tower), whose weights belong to no component"),
        ("fuyu", "transformers' get_encoder names no vision tower in it"),
        ("idefics", "names no LLM in it that lies apart from its tower, model.vision_model"),
        ("florence2", "its LLM is an encoder with a decoder, and vlmft trains LLMs that go on with their text"),
        (
            "video_llama_3",
            "its forward takes no logits_to_keep, so it computes the logits of all tokens whatever is",
        ),
    ],
)
def test_a_class_that_cannot_be_taken_apart_is_refused(model_type: str, message: str) -> None:
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(CONFIG_MAPPING[model_type]())
    with pytest.raises(ConfigError, match=literally(message)) as raised:
        dissect(model)
    assert raised.value.problems[1] == (
        f"  no family of vlmft's own fits its model_type ({model.config.model_type}); to write one, see "
        'CONTRIBUTING.md, "a model family"'
    )


def test_a_projector_is_needed() -> None:
    model = next(family for family in FAMILIES if family.name == "llava15").spec.skeleton()
    model.model.multi_modal_projector = torch.nn.Identity()
    message = "no projector is found: nothing lies outside of its tower (model.vision_tower) and its LLM (model.lang"
    with pytest.raises(ConfigError, match=literally(message)):
        dissect(model)


def test_a_component_without_weights() -> None:
    model = next(family for family in FAMILIES if family.name == "llava15").spec.skeleton()
    model.model.vision_tower = torch.nn.Identity()
    with pytest.raises(ConfigError, match=literally("no weight of it lies in vision_tower (model.vision_tower)")):
        dissect(model)
