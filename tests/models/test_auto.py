"""`model=auto`: each tiny family is proven, and then encoded and trained as its own file does it; or it is refused."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from tests.models.autos import NAMES, auto, config_of, parts, samples
from tests.models.families import FAMILIES, Family, asked, collator_of, encoder_of, picture, processor_of, video
from tests.models.table import DOCS
from tests.support import compose, literally, with_recipe
from vlmft import assembly
from vlmft.config.media import MediaRules
from vlmft.encoding.collate import Batch, Collator
from vlmft.encoding.encoder import Encoder
from vlmft.encoding.model_proof import prove_model
from vlmft.encoding.proof import prove_encoding
from vlmft.errors import ConfigError, DataError
from vlmft.models import Auto
from vlmft.recipes.groups import parameter_groups
from vlmft.training.loss import supervised_loss
from vlmft.types import Image, Sample

REFUSED = {
    "llava_onevision": "model=auto: LlavaOnevisionProcessor: it writes a picture otherwise where there are several, or "
    "changes the text around pictures\n"
    "  use model=llava_onevision, a family of vlmft's own that fits its model_type (llava_onevision)",
    "mllama": "model=auto: MllamaProcessor: it writes a picture otherwise where there are several, or changes the text "
    "around pictures\n  use model=mllama, a family of vlmft's own that fits its model_type (mllama)",
    "molmo2": "model=auto: Molmo2Processor: the chat template ends every answer but the last with '<|im_end|>': let it "
    "end the last one with it, too\n  use model=molmo2, a family of vlmft's own that fits its model_type (molmo2)",
    "paligemma": "model=auto: PaliGemmaProcessor: PaliGemmaProcessor has no chat template: take an instruction-tuned "
    "checkpoint, or put a chat_template.jinja into the checkpoint's folder\n"
    "  use model=paligemma, a family of vlmft's own that fits its model_type (paligemma)",
}
"""Families that `model=auto` does not take, each with the whole of what it says."""

FAST = ("llava15", "llava_onevision", "gemma3")
each = pytest.mark.parametrize(
    "family",
    [pytest.param(family, marks=() if family.name in FAST else pytest.mark.slow) for family in FAMILIES],
    ids=lambda family: family.name,
)


@each
def test_a_tiny_family_is_proven_and_then_trains_as_its_own_file_does_it_or_is_refused(
    family: Family, tmp_path: Path
) -> None:
    mine = samples(tmp_path)
    if family.name in REFUSED:
        spec, processor = auto(family.name)
        with pytest.raises(ConfigError) as raised:
            encoder = assembly.encoder(config_of(family), processor)
            prove_encoding(encoder, Collator(spec, processor), mine, spec.refused)
        assert str(raised.value) == REFUSED[family.name]
        return
    spec, encoder, collator = parts(family.name)
    prove_encoding(encoder, collator, mine, spec.refused)
    groups = [mine[:3], mine[3:]]
    ours = [collator([encoder.encode(sample) for sample in group]) for group in groups]
    theirs = [collator_of(family)([encoder_of(family).encode(sample) for sample in group]) for group in groups]
    for our, their in zip(ours, theirs, strict=True):
        given = family.spec.model_inputs(processor_of(family.name), dict(their.inputs))
        assert torch.equal(our.labels, their.labels) and our.inputs.keys() == given.keys()
        assert torch.equal(_tiles(our.inputs["pixel_values"]), _tiles(given["pixel_values"]))
        for name in given.keys() - {
            "pixel_values",
            "pixel_attention_mask",
        }:  # of Idefics, filled up with zeros
            assert torch.equal(our.inputs[name], given[name]), name

    def prove(model: Any) -> None:
        found = prove_model(model, encoder, collator, mine, spec.refused, 1e-3, 8192)
        assert found.startswith("proven on 4 samples of the run and 4 of noise: encoded as by ")

    recipe = ("recipe=lora_vt_llm", "precision=fp32")
    found = two_steps(config_of(family, *recipe), family, ours, prove)
    assert found == pytest.approx(two_steps(compose(f"model=tiny_{family.name}", *recipe), family, theirs), rel=1e-5)


def two_steps(
    config: Any, family: Family, batches: list[Batch], prove: Callable[[Any], None] | None = None
) -> list[float]:
    """The losses of two steps, each on a batch of its own."""
    torch.manual_seed(0)
    model = with_recipe(config)
    if prove is not None:
        modes = [module.training for module in model.modules()]
        before, own = {name: p.clone() for name, p in model.named_parameters()}, model.generation_config
        state = torch.get_rng_state()
        prove(model)
        assert torch.equal(torch.get_rng_state(), state) and model.generation_config is own
        assert [module.training for module in model.modules()] == modes
        assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
    optimizer = torch.optim.AdamW(parameter_groups(model, config.recipe, config.model, 1e-2, 0.0))
    model.train()
    losses = []
    for batch in batches:
        torch.manual_seed(1)
        inputs = config.model.model_inputs(processor_of(family.name), dict(batch.inputs))
        loss = supervised_loss(model, inputs, batch.labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _tiles(pixels: torch.Tensor) -> torch.Tensor:
    """Tiles in their order, without those of zeros that fill a row up (Idefics)."""
    flat = pixels.flatten(0, 1) if pixels.ndim == 5 else pixels
    return flat[flat.flatten(1).any(dim=1)]


def test_the_docs_name_the_families_that_are_refused() -> None:
    (said,) = re.findall(r"`model=auto` takes all but(.*?), and then trains", DOCS.read_text(), re.DOTALL)
    assert set(re.findall(r"`(\w+)`", said)) == set(REFUSED) <= set(NAMES)


def test_without_a_path() -> None:
    with pytest.raises(
        ConfigError, match=literally("model.path: model=auto needs one, a folder or a hub id: model.pa")
    ):
        compose("model=auto").model.refuse_missing_folder()


@pytest.mark.parametrize("choice", ["model.image.max_pixels=1000", "dataset.shapes.image.max_pixels=1000"])
def test_a_budget_is_refused(choice: str, tmp_path: Path) -> None:
    config = config_of(NAMES["llava15"], f"++{choice}")
    message = (
        "model=auto: model.image: max_pixels=1000: pictures are seen as its processor has it; leave it null\n"
        "  use model=llava15, a family of vlmft's own that fits its model_type (llava)"
    )
    with pytest.raises(ConfigError, match=literally(message)):
        processor = config.model.load_processor()
        config.model.image_text(processor, (56, 56), config.dataset["shapes"].image)


def test_a_video_is_refused(tmp_path: Path) -> None:
    _, encoder, _ = parts("qwen25vl")
    with pytest.raises(
        DataError, match="is a video, and Auto takes none; leave its samples out, or take a family that"
    ):
        encoder.count(asked(video(tmp_path, 4, 56, 56), "What?"))


def test_boxes_need_a_style(tmp_path: Path) -> None:
    sample = asked(picture(tmp_path, 50, 100), "Where? <box>10, 20, 30, 40</box>")
    boxed = Sample(sample.id, sample.messages, rules=MediaRules(coordinates="pixels"))
    _, encoder, _ = parts("llava15")
    with pytest.raises(
        ConfigError, match=literally("model.coordinate_style: null, and an entry's texts hold boxes or")
    ):
        encoder.count(boxed)
    spec = config_of(NAMES["llava15"], "model.coordinate_style=thousand").model
    counted = Encoder(spec, spec.load_processor()).count(boxed)
    assert counted.sample.messages[0].text == "Where? <box>100, 400, 300, 800</box>"


def test_a_folder_of_another_task(tmp_path: Path) -> None:
    family, own = NAMES["llava15"], AutoConfig.from_pretrained(NAMES["llava15"].spec.folder())
    own.text_config.save_pretrained(tmp_path)
    spec = compose("model=auto", f"model.path={tmp_path}").model
    message = "model=auto: LlamaConfig: transformers has no AutoModelForImageTextToText for it"
    with pytest.raises(ConfigError, match=literally(message)):
        _ = spec.component_paths
    with pytest.raises(ConfigError, match=literally(message)):
        spec.placeholders(processor_of(family.name))


def test_flash_attention_is_refused() -> None:
    values = dict(auto("llava15")[0]) | {"attention": "flash_attention_2"}
    message = "flash_attention_2 reads no masks, which here say what nobody has looked at; use sdpa or eager"
    with pytest.raises(ValueError, match=message):
        Auto(**values)


def test_a_tokenizer_without_a_pad_token_is_refused() -> None:
    spec, processor = auto("llava15")
    bare = copy.copy(processor)
    bare.tokenizer = AutoTokenizer.from_pretrained(spec.folder())
    bare.tokenizer.pad_token = None
    message = "model=auto: LlavaProcessor: its tokenizer has no pad token, with which batches are filled up"
    with pytest.raises(ConfigError, match=literally(message)):
        Encoder(spec, bare)


def test_a_config_that_names_no_image_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, processor = auto("llava15")
    monkeypatch.setattr(Auto, "_config", SimpleNamespace(model_type="llava"))
    monkeypatch.setattr(Auto, "_refuse_other_tasks", lambda self: None)
    message = "model=auto: LlavaProcessor: its config names no image_token_id, whose place a picture's features take"
    with pytest.raises(ConfigError, match=literally(message)):
        Encoder(spec, copy.copy(processor))


def test_a_template_that_writes_no_picture_is_refused() -> None:
    spec, processor = auto("llava15")
    mute = copy.copy(processor)
    mute.chat_template = processor.chat_template.replace("<image>", "a picture: ")
    message = "its chat template writes none of its own tokens once for a picture; known are ['<image>']"
    with pytest.raises(ConfigError, match=literally(message)):
        Encoder(spec, mute)


def test_what_the_tower_gets_is_shown_where_it_lies_as_pictures(tmp_path: Path) -> None:
    white = tmp_path / "white.png"
    PIL.Image.new("RGB", (112, 56), "white").save(white)
    for name, shape in (("llava15", (1, 56, 56, 3)), ("qwen25vl", (0, 0, 0, 3))):
        spec, encoder, _ = parts(name)
        media = encoder.encode(asked(Image(white), "What?")).media
        shown = spec.shown(encoder.processor, media[0])
        assert shown.dtype == np.uint8 and shown.shape == shape and (shown == 255).all()


def test_what_was_learned_is_not_saved_with_the_processor(tmp_path: Path) -> None:
    spec, processor = auto("llava15")
    parts("llava15")
    processor.save_pretrained(tmp_path)
    assert "VLMFTx" not in "".join(path.read_text() for path in tmp_path.glob("*.json"))
    assert Auto(**{**dict(spec), "path": str(tmp_path)}).located().path == str(tmp_path)
