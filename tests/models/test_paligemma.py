"""PaliGemma: one question and its answer, as its processor takes them with `suffix=`; a mask that is causal in part."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GemmaConfig, PaliGemmaConfig, PaliGemmaForConditionalGeneration

from tests.data.making import qa
from tests.merging.support import merge
from tests.models.families import FAMILIES, asked, collator_of, encoder_of, official_prefix, picture, processor_of
from tests.recipes.training import Trained, save_trained
from tests.support import CPU, compose, save_noise, with_recipe
from vlmft.encoding.encoder import Encoder
from vlmft.errors import ConfigError, DataError
from vlmft.merging.exchange import Exchange
from vlmft.models.components import component_of
from vlmft.models.kernels import kernels_in_use
from vlmft.types import Message, Part, Sample, Video

(FAMILY,) = (family for family in FAMILIES if family.name == "paligemma")
ANSWERS = ["red", "\nred", "  two  spaces \n", "<loc0012><loc0500><loc1023><loc0000> cat ; <seg004>", "a\n\nb 日本 🙂"]


def processor() -> Any:
    return processor_of("paligemma")


def inputs_of(*samples: Sample) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What the model takes of a batch of samples, and its labels."""
    batch = collator_of(FAMILY)([encoder_of(FAMILY).encode(sample) for sample in samples])
    return FAMILY.spec.model_inputs(processor(), batch.inputs), batch.labels


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("number", [1, 2])
def test_an_answer_is_the_official_processor_s_suffix(tmp_path: Path, answer: str, number: int) -> None:
    """Ids, token types, pixels and labels; the question's newline and the answer's are never one token."""
    pictures = [picture(tmp_path, 60 + 30 * i, 90, i) for i in range(number)]
    words: list[Part] = ["Is ", *pictures[:1], "this like", *pictures[1:], "\nthat?\n"]
    sample = asked(*words, answer=answer)
    found, labels = inputs_of(sample)
    expected = official_prefix(processor(), sample, suffix=answer)
    assert torch.equal(labels, expected.pop("labels"))
    assert found.keys() == expected.keys()
    assert {name: torch.equal(found[name], tensor) for name, tensor in expected.items()} == dict.fromkeys(found, True)
    counted = encoder_of(FAMILY).count(sample)
    assert counted.num_tokens == expected["input_ids"].shape[1]
    assert counted.num_supervised == int(expected["token_type_ids"].sum())


def test_what_stands_where_is_written_out_by_hand(tmp_path: Path) -> None:
    sample = asked("red", picture(tmp_path, 56, 56), "it", picture(tmp_path, 56, 56, 1), " red?", answer="no")
    chat = encoder_of(FAMILY).chat
    assert chat.render(sample).text == "red<image>it<image><bos> red?\nno<eos>"
    assert chat.prompt(sample) == "red<image>it<image><bos> red?\n"
    found, labels = inputs_of(sample, asked(picture(tmp_path, 56, 56), "What colour is the shape?", answer="dark red"))
    tokens = processor().tokenizer.convert_ids_to_tokens
    kept = found["input_ids"][0] != processor().image_token_id
    assert tokens(found["input_ids"][0][kept])[:7] == ["re", "d", "it", "<bos>", "▁red", "?", "\n"]
    supervised = labels[0] != -100
    assert tokens(labels[0][supervised]) == ["n", "o", "<eos>"]
    # 0 for pictures, question and padding; 1 for the answer
    assert torch.equal(found["token_type_ids"], (labels != -100).long())


@torch.no_grad()
def test_a_question_is_read_both_ways_and_an_answer_forwards(tmp_path: Path) -> None:
    model = FAMILY.spec.load_model(CPU).eval()
    shown = [picture(tmp_path, 56, 56, n) for n in range(2)]  # more than the window of the LLM's first layer
    inputs, labels = inputs_of(asked(*shown, "Which colour?", answer="black white red"))
    start = int((labels[0] != -100).nonzero()[0])
    plain = model(**inputs, use_cache=False).logits[0]

    def changed(place: int) -> torch.Tensor:
        """Which places' logits another token at `place` changes."""
        ids = inputs["input_ids"].clone()
        ids[0, place] = processor().tokenizer.convert_tokens_to_ids("yes")
        return (model(**inputs | {"input_ids": ids}, use_cache=False).logits[0] - plain).abs().amax(-1) > 1e-5

    assert changed(start - 2).all()  # the question's last word is seen from its first picture token on
    for place in range(start, len(plain)):
        assert not changed(place)[:place].any() and changed(place)[place:].all(), place


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([("user", "?"), ("assistant", "a"), ("user", "?"), ("assistant", "b")], "user, assistant, user, assistant"),
        ([("system", "Be brief."), ("user", "?"), ("assistant", "a")], "system, user, assistant"),
    ],
)
def test_more_than_a_question_and_its_answer_is_refused(
    tmp_path: Path, turns: list[tuple[Any, str]], message: str
) -> None:
    shown = picture(tmp_path, 56, 56)
    messages = tuple(Message(role, (shown, text) if role == "user" else (text,)) for role, text in turns)
    complaint = rf"mine/1 \(\): its turns are {message}, and this checkpoint takes one question and its answer: make"
    for encode in (encoder_of(FAMILY).encode, encoder_of(FAMILY).encode_prompt):
        with pytest.raises(DataError, match=complaint):
            encode(Sample("mine/1", messages))


def test_a_question_without_a_picture_is_refused_as_the_official_processor_does() -> None:
    with pytest.raises(DataError, match=r"mine/1 \(data.json:1\): it has no picture, .* about pictures alone: leave"):
        encoder_of(FAMILY).encode(asked("Are you?"))
    with pytest.raises(ValueError, match="`images` are expected"):
        processor()(text=["Are you?"], suffix=["yes"])


def test_a_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a video, and TinyPaliGemma takes none"):
        encoder_of(FAMILY).encode(asked(Video(tmp_path / "a.mp4"), "?"))


@pytest.mark.parametrize("text", ["a <bos> b", "two <image>", "<eos>"])
def test_control_tokens_in_a_text_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"which the tokenizer reads as a control token"):
        encoder_of(FAMILY).encode(asked(picture(tmp_path, 56, 56), "?", answer=text))


def test_what_the_processor_is_given_comes_to_the_prompt(tmp_path: Path) -> None:
    """As `merge` compares the merged folder's processor with the training."""
    sample = asked("Is", picture(tmp_path, 56, 56), "it red?\n\n")
    text = FAMILY.spec.processor_text(processor(), encoder_of(FAMILY).chat.prompt(sample))
    assert text == "Is<image>it red?\n\n"
    assert torch.equal(
        official_prefix(processor(), sample)["input_ids"][0], encoder_of(FAMILY).encode_prompt(sample).input_ids
    )


@pytest.mark.slow
def test_the_merged_folder_s_processor_makes_what_the_training_did(tmp_path: Path, capsys: Any) -> None:
    config = compose("model=tiny_paligemma", "recipe=projector")
    save_noise(tmp_path / "0.png", 56, 56)
    (tmp_path / "rows.json").write_text(json.dumps([qa(id="a", image="0.png")]))
    entry = {"_target_": "vlmft.data.LLaVADataset", "data_path": str(tmp_path / "rows.json")}
    values = {name: value for name, value in config.to_config().items() if name != "_target_"}
    values |= {"dataset": {"mine": entry}, "run": {"name": "x", "dir": "x"}}
    trained = Trained(config, with_recipe(config).eval(), {})
    merge(tmp_path, save_trained(trained, tmp_path / "final", config=json.dumps(values)), samples=1)
    assert "compared 1 of 1 answers" in capsys.readouterr().out
    (asked_for,) = Exchange(tmp_path / "between").handover().asked
    assert asked_for.images == (str(tmp_path / "0.png"),)
    assert not (tmp_path / "merged" / "chat_template.jinja").exists()


def test_a_checkpoint_with_a_chat_template_is_refused() -> None:
    spec = FAMILY.spec
    changed = spec.load_processor()
    changed.chat_template = "{{ messages }}"
    with pytest.raises(ConfigError, match=r"PaliGemmaProcessor writes .* itself: take that template out of a copy"):
        Encoder(spec, changed)


def attention(model: Any) -> dict[str, tuple[str, ...]]:
    return kernels_in_use(model, lambda name: component_of(name, FAMILY.spec.component_paths)).attention


def test_gemma_2_computes_in_eager_where_the_tower_has_sdpa() -> None:
    assert attention(FAMILY.spec.load_model(CPU)) == {"vision_tower": ("sdpa",), "llm": ("eager",)}
    spec = compose("model=tiny_paligemma", "model.attention=eager").model
    assert attention(spec.load_model(CPU)) == {"vision_tower": ("eager",), "llm": ("eager",)}


@pytest.fixture(scope="module")
def first_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PaliGemma 1: the same with a Gemma as LLM."""
    folder = tmp_path_factory.mktemp("paligemma1")
    shutil.copytree(FAMILY.spec.folder(), folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
    config["text_config"] = GemmaConfig(
        **{name: config["text_config"][name] for name in names}, num_key_value_heads=1, initializer_range=0.1
    ).to_dict()
    torch.manual_seed(0)
    PaliGemmaForConditionalGeneration(PaliGemmaConfig(**config)).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_the_first_version_computes_in_sdpa(first_version: Path, tmp_path: Path) -> None:
    """And a sample is as it is alone, whatever stands beside it."""
    model = compose("model=tiny_paligemma", f"model.path={first_version}").model.load_model(CPU).eval()
    assert attention(model) == {"vision_tower": ("sdpa",), "llm": ("sdpa",)}
    samples = [asked(picture(tmp_path, 56, 56, n), "?" * (1 + 8 * n), answer="red " * (5 - n)) for n in range(3)]
    together = model(**inputs_of(*samples)[0], use_cache=False).logits
    for row, sample in zip(together, samples, strict=True):
        alone = model(**inputs_of(sample)[0], use_cache=False).logits[0]
        torch.testing.assert_close(row[: len(alone)], alone, rtol=1e-3, atol=2e-4)
