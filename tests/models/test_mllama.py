"""What only Llama 3.2 Vision has: pictures beside the text, and a batch that changes what is computed of a sample."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from tests.models.families import FAMILIES, asked, collator_of, encoder_of, picture, processor_of
from tests.support import CPU, compose, literally
from vlmft.config.media import PixelBudget
from vlmft.errors import ConfigError, DataError
from vlmft.recipes.groups import learning_rates
from vlmft.types import Message, Sample

(FAMILY,) = (family for family in FAMILIES if family.name == "mllama")
WITHOUT_A_BATCH = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask", "cross_attention_mask")


def inputs_of(*samples: Sample) -> dict[str, torch.Tensor]:
    encoder = encoder_of(FAMILY)
    batch = collator_of(FAMILY)([encoder.encode(sample) for sample in samples])
    return FAMILY.spec.model_inputs(processor_of("mllama"), batch.inputs)


@torch.no_grad()
def test_an_empty_picture_slot_changes_a_sample_in_transformers(tmp_path: Path) -> None:
    """Why samples of one batch have equally many pictures: if this fails, the library has mended what `batch_kind`
    avoids (issue 39379), and it may go."""
    model = FAMILY.spec.load_model(CPU).eval()
    alone = inputs_of(asked(picture(tmp_path, 56, 112), "What?"))
    wider = alone | {
        name: functional.pad(alone[name], (0, 0) * (alone[name].ndim - 2) + (0, 1)) for name in WITHOUT_A_BATCH[:3]
    }
    wider["aspect_ratio_mask"][:, 1, 0] = 1  # as the official processor marks an empty slot
    wider["cross_attention_mask"] = functional.pad(alone["cross_attention_mask"], (0, 0, 0, 1))
    logits, changed = (model(**inputs, use_cache=False).logits for inputs in (alone, wider))
    assert float((logits - changed).abs().max()) > 0.01
    text = inputs_of(asked("What?"))
    beside = text | {name: alone[name] for name in WITHOUT_A_BATCH[:3]}
    beside["cross_attention_mask"] = torch.zeros(1, text["input_ids"].shape[1], 1, 4, dtype=torch.int64)
    logits, changed = (model(**inputs, use_cache=False).logits for inputs in (text, beside))
    assert float((logits - changed).abs().max()) > 0.01


def test_samples_with_as_many_pictures_share_a_batch_and_others_do_not(tmp_path: Path) -> None:
    one, other = asked(picture(tmp_path, 56, 56), "What?"), asked(picture(tmp_path, 56, 300), "And what is this?")
    inputs = inputs_of(one, other)
    assert inputs["pixel_values"].shape == (2, 1, 4, 3, 56, 56)
    assert inputs["aspect_ratio_mask"].tolist() == [[[1, 0, 0, 0]], [[1, 1, 1, 1]]]
    assert not inputs["pixel_values"][0, 0, 1:].any()
    message = "TinyMllama takes no batch of the kinds [0, 1] together: "
    with pytest.raises(ValueError, match=f"^{literally(message)}"):
        inputs_of(one, asked("What?"))


def test_a_token_sees_the_picture_before_it_and_those_that_stand_with_that_one(tmp_path: Path) -> None:
    first, second, third = (picture(tmp_path, 56, 56 * width, width) for width in (1, 2, 1))
    inputs = inputs_of(asked("See", first, second, "and", third, "?"))
    ids, mask = inputs["input_ids"][0], inputs["cross_attention_mask"][0]
    places = (ids == processor_of("mllama").image_token_id).nonzero().flatten().tolist()
    assert places[1] == places[0] + 1 < places[2] - 1
    seen = [row.any(-1).tolist() for row in mask]
    assert seen[: places[0]] == [[False] * 3] * places[0]
    assert seen[places[0]] == [True, False, False]
    assert seen[places[1] : places[2]] == [[True, True, False]] * (places[2] - places[1])
    assert seen[places[2] :] == [[False, False, True]] * (len(ids) - places[2])
    assert mask[places[1]].tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]


def test_the_size_that_is_seen_is_without_what_fills_the_tiles() -> None:
    seen = FAMILY.spec.seen_image
    assert seen(processor_of("mllama"), (100, 40), PixelBudget()) == (100, 40)
    assert seen(processor_of("mllama"), (30, 30), PixelBudget()) == (56, 56)
    assert seen(processor_of("mllama"), (1000, 250), PixelBudget()) == (224, 56)


def test_the_number_of_tiles_is_no_choice() -> None:
    spec = compose("model=tiny_mllama", "model.image.max_pixels=6272").model
    message = "model.image: max_pixels=6272: this checkpoint sees every picture at 56 x 56 pixels; leave it null"
    with pytest.raises(ConfigError, match=f"^{literally(message)}$"):
        spec.load_processor()


def test_a_system_turn_is_written_as_text_and_refused_beside_a_picture(tmp_path: Path) -> None:
    turns = (Message("system", ("Be brief.",)), *asked("Hi").messages)
    text = encoder_of(FAMILY).chat.render(Sample("mine/1", turns)).text
    assert "\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>" in text
    turns = (turns[0], *asked(picture(tmp_path, 56, 56), "Hi").messages)
    message = "mine/1 (): the chat template refuses the conversation: Prompting with images is incompatible with"
    with pytest.raises(DataError, match=literally(message)):
        encoder_of(FAMILY).encode(Sample("mine/1", turns))


def test_the_two_lists_of_the_towers_blocks_are_one_row() -> None:
    config = compose("model=tiny_mllama", "recipe=fft", "recipe.vision_tower.layer_decay=0.5")
    model = config.model.load_model(CPU)
    rates = learning_rates(model, config.recipe, config.model, 1.0)
    tower = "model.vision_model."
    last = rates[f"{tower}global_transformer.layers.1.gate_attn"]
    found = [
        rates[tower + name] / last
        for name in (
            "global_transformer.layers.0.mlp.fc1.weight",
            "transformer.layers.1.mlp.fc1.weight",
            "transformer.layers.0.mlp.fc1.weight",
            "patch_embedding.weight",
        )
    ]
    assert found == pytest.approx([1 / 2, 1 / 4, 1 / 8, 1 / 16])


def test_a_picture_has_an_embedding_and_no_logit() -> None:
    model = FAMILY.spec.load_model(CPU)
    image = processor_of("mllama").image_token_id
    assert model.config.text_config.vocab_size == image == model.lm_head.out_features
    assert model.get_input_embeddings().num_embeddings == image + 8
