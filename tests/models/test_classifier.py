import re
from pathlib import Path

import pytest
import torch

from tests.models.families import (
    FAMILIES,
    FRAMES_FPS,
    Family,
    asked,
    collator_of,
    encoder_of,
    of_a_text,
    picture,
    processor_of,
    video,
)
from tests.support import CPU, compose, with_recipe
from vlmft.encoding.encoder import Encoded
from vlmft.encoding.probe import probe_sample
from vlmft.models import LinearHead, MlpHead
from vlmft.models.classifier import Classifier, Head, backbone_of, pool
from vlmft.models.packing import borders
from vlmft.recipes.probe import freeze_unreached
from vlmft.types import Image, Sample, Video

LINEAR = LinearHead(pooling="last", dropout=0.0, lr_factor=1.0, lr=None)
FAST = ("qwen25vl", "smolvlm", "paligemma")
EACH = [pytest.param(f, id=f.name, marks=() if f.name in FAST else (pytest.mark.slow,)) for f in FAMILIES]


def random_head(hidden_size: int = 64, num_classes: int = 5) -> Head:
    """A head whose logits tell states apart: as it begins, all are 0."""
    torch.manual_seed(0)
    head = Head(LINEAR, hidden_size, num_classes)
    torch.nn.init.normal_(head.layers[-1].weight)  # type: ignore[arg-type]
    return head


class TestPool:
    STATES = torch.arange(12.0).reshape(2, 3, 2)
    MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])

    @pytest.mark.parametrize(
        ("pooling", "expected"), [("last", [[2, 3], [10, 11]]), ("mean", [[1, 2], [8, 9]]), ("max", [[2, 3], [10, 11]])]
    )
    def test_sees_no_padding(self, pooling, expected) -> None:
        assert pool(self.STATES, self.MASK, pooling).tolist() == expected
        spoilt = self.STATES.clone()
        spoilt[0, 2] = torch.inf
        assert pool(spoilt, self.MASK, pooling).tolist() == expected
        assert pool(spoilt.flip(1), self.MASK.flip(1), pooling).isfinite().all()

    def test_the_largest_may_stand_anywhere(self) -> None:
        assert pool(-self.STATES, self.MASK, "max").tolist() == [[0, -1], [-6, -7]]

    @pytest.mark.parametrize("pooling", ["last", "mean", "max"])
    def test_takes_each_sample_of_a_pack_by_itself(self, pooling) -> None:
        lengths = (3, 1, 4)
        states = torch.randn(1, sum(lengths), 5, generator=torch.Generator().manual_seed(0))
        found = pool(states, borders(lengths, states.device), pooling)
        alone = [pool(part, torch.ones(part.shape[:2]), pooling) for part in states.split(lengths, dim=1)]
        torch.testing.assert_close(found, torch.cat(alone))

    @pytest.mark.parametrize("pooling", ["last", "mean", "max"])
    def test_is_in_float32(self, pooling) -> None:
        assert pool(self.STATES.bfloat16(), self.MASK, pooling).dtype == torch.float32


class TestHead:
    def test_begins_with_every_class_alike(self) -> None:
        mlp = MlpHead(pooling="last", dropout=0.0, lr_factor=1.0, lr=None, hidden=7)
        for spec in (LINEAR, mlp):
            assert Head(spec, 8, 3)(torch.randn(4, 8)).tolist() == [[0.0] * 3] * 4

    def test_is_made_as_its_spec_says(self) -> None:
        mlp = MlpHead(pooling="last", dropout=0.25, lr_factor=1.0, lr=None, hidden=7)
        sizes = {name: list(p.shape) for name, p in Head(mlp, 8, 3).named_parameters()}
        assert sizes == {
            "layers.1.weight": [7, 8],
            "layers.1.bias": [7],
            "layers.4.weight": [3, 7],
            "layers.4.bias": [3],
        }
        assert [module.p for module in Head(mlp, 8, 3).modules() if isinstance(module, torch.nn.Dropout)] == [0.25] * 2
        assert {name for name, _ in Head(LINEAR, 8, 3).named_parameters()} == {"layers.1.weight", "layers.1.bias"}

    def test_computes_in_float32_under_autocast(self) -> None:
        head, states = random_head(8, 3), torch.randn(4, 8)
        with torch.autocast("cpu", torch.bfloat16):
            found = head(states)
        assert found.dtype == torch.float32 and torch.equal(found, head(states))


def test_a_classifier_is_in_the_mode_of_its_model() -> None:
    model = FAMILIES[1].spec.load_model(CPU)
    for training in (False, True):
        made = Classifier(model.train(training), random_head(), "last", torch.float32)
        assert {module.training for module in made.modules()} == {training}


def samples_of(family: Family, folder: Path) -> list[Sample]:
    found = [
        asked(*of_a_text(family, folder), "What colour is the shape?"),
        asked(picture(folder, 120, 60), "What colour?"),
        asked(picture(folder, 56, 56, 1), "Like", picture(folder, 84, 100, 2), "?"),
    ]
    return [*found, asked(video(folder, 4, 56, 84), "What happens?")] if family.video else found


@pytest.mark.parametrize("family", EACH)
@torch.no_grad()
def test_logits_are_those_of_the_last_token_whatever_stands_beside_it(family: Family, tmp_path: Path) -> None:
    encoder, collator, processor = encoder_of(family), collator_of(family), processor_of(family.name)
    encoded = [encoder.encode_prompt(sample) for sample in samples_of(family, tmp_path)]
    model = Classifier(family.spec.load_model(CPU).eval(), random_head(), "last", torch.float32).eval()

    def inputs_of(group: list[Encoded]) -> dict[str, torch.Tensor]:
        return family.spec.model_inputs(processor, collator(group).inputs)

    alone = [model(**inputs_of([one]))[0] for one in encoded]
    assert all(float((a - b).abs().max()) > 0.01 for a, b in zip(alone, alone[1:], strict=False))
    kinds = collator.kinds(encoded)
    padded = 0
    for kind in set(kinds):
        group = [number for number, own in enumerate(kinds) if own == kind]
        inputs = inputs_of([encoded[number] for number in group])
        padded += int((inputs["attention_mask"] == 0).sum())
        for number, row in zip(group, model(**inputs), strict=True):
            torch.testing.assert_close(row, alone[number], rtol=1e-3, atol=1e-3)
    # The last token's own state is what the head sees: the same as by hand, and another with another token.
    one = inputs_of([encoded[0]])
    states = backbone_of(model.model)(**one, use_cache=False).last_hidden_state
    torch.testing.assert_close(model.head(states[:, -1]), alone[0][None])
    changed = one | {"input_ids": one["input_ids"].clone()}
    changed["input_ids"][0, -1] += 1 if int(one["input_ids"][0, -1]) != 1 else 2
    assert float((model(**changed)[0] - alone[0]).abs().max()) > 0.01
    assert padded or len(set(kinds)) == len(kinds)
    # A picture is seen, and the order of a video's frames.
    other = inputs_of([encoder.encode_prompt(asked(picture(tmp_path, 120, 60, 9), "What colour?"))])
    assert float((model(**other)[0] - alone[1]).abs().max()) > 1e-4
    if family.video:
        frames = video(tmp_path, 4, 56, 84).frames
        other = inputs_of([encoder.encode_prompt(asked(Video(tmp_path, frames[::-1], FRAMES_FPS), "What happens?"))])
        assert float((model(**other)[0] - alone[3]).abs().max()) > 1e-4


@pytest.mark.parametrize("recipe", ["fft", "lora_llm", "ln_vt_lora_llm_nf4", "projector", "fft_vt_lora_llm"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_head_learns_and_the_model_as_its_recipe_says(tmp_path: Path, recipe: str, precision: str) -> None:
    if recipe.endswith("nf4"):
        pytest.importorskip("bitsandbytes")
    config = compose(f"recipe={recipe}").model_copy(update={"precision": precision})
    family = next(f for f in FAMILIES if f.name == "qwen25vl")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = Classifier(with_recipe(config), random_head(), "last", dtype)
    sample = encoder_of(family).encode_prompt(asked(Image(picture(tmp_path, 60, 60).path), "Which?"))
    inputs = family.spec.model_inputs(processor_of("qwen25vl"), collator_of(family)([sample]).inputs)
    logits = model.train()(**inputs)
    assert logits.shape == (1, 5) and logits.dtype == torch.float32
    torch.nn.functional.cross_entropy(logits, torch.tensor([3])).backward()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, name
        elif "lora_A" not in name and not (name.endswith("lm_head.weight")):
            assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_learns_from_every_kind_of_sample(family: Family, tmp_path: Path) -> None:
    """Trained in full, every weight gets a gradient but the LM head's and those that never get one."""
    model = Classifier(
        with_recipe(compose(f"model=tiny_{family.name}", "recipe=fft")), random_head(), "last", torch.float32
    )
    encoder, collator = encoder_of(family), collator_of(family)
    probe = collator.on_device([probe_sample(encoder)], model)[0]
    unreached = freeze_unreached(model.model, lambda _: model.pooled(**probe).sum())
    known = re.compile(f"^lm_head\\.weight$|{family.unreached or '$.'}")
    assert [name for name in unreached if not known.search(name)] == []
    model.train()
    for number, sample in enumerate(samples_of(family, tmp_path)):
        logits = model(**collator.on_device([encoder.encode_prompt(sample)], model)[0])
        torch.nn.functional.cross_entropy(logits, torch.tensor([number])).backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []
