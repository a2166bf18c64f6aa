"""The plan's bytes against those of the same step on real tensors, counted in two ways."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from tests.support import compose, with_recipe
from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.encoding.probe import probe_sample
from vlmft.models.packing import use_packed_attention
from vlmft.planning.build import hollow_model
from vlmft.planning.hollow import Hollow
from vlmft.planning.trace import Traced, trace_step
from vlmft.recipes.probe import freeze_unreached
from vlmft.tasks import task_of
from vlmft.tasks.base import probe_loss
from vlmft.train import TrainConfig
from vlmft.training.loss import supervised_loss

SLOW = pytest.mark.slow


class Step:
    """One step of a config's model, hollow or real, with the optimiser's state there."""

    def __init__(self, config: TrainConfig, model: Any, samples: int = 2) -> None:
        family, processor = config.model, config.model.load_processor()
        encoder = Encoder(family, processor)
        self.config, self.model, self.collator = (
            config,
            model.train(),
            Collator(family, processor, config.batching.packs),
        )
        self.units: list[Encoded] = [probe_sample(encoder)] * samples
        freeze_unreached(model, lambda model: probe_loss(model, encoder, self.collator))
        if config.trainer.gradient_checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        self.optimizer = config.optim.build(task_of(config).groups(model))
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        self.optimizer.step()
        self.optimizer.zero_grad()

    def trace(self, gradients_there: bool = False) -> Traced:
        family = self.config.model
        return trace_step(
            self.model, self.optimizer, family, self.collator, self.units, supervised_loss, gradients_there
        )

    def counted_after_forward(self) -> int:
        """Weights, buffers, optimiser state, and what autograd saves, each storage once."""
        held: dict[int, int] = {}

        def see(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
            return tensor

        tensors = [*self.model.parameters(), *self.model.buffers()]
        tensors += [v for state in self.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
        for tensor in tensors:
            see(tensor)
        inputs, labels = self.collator.for_loss(self.units, self.model)
        with saved_tensors_hooks(see, lambda tensor: tensor):
            loss = supervised_loss(self.model, inputs, labels)
        del loss
        return sum(held.values())


def planned(config: TrainConfig, **options: Any) -> Traced:
    hollow = Hollow()
    model = hollow_model(config, hollow)
    with hollow:
        return Step(config, model).trace(**options)


def real(config: TrainConfig) -> Step:
    model = with_recipe(config)
    if config.batching.packs:
        use_packed_attention(model)
    return Step(config, model)


@pytest.mark.parametrize(
    ("family", "recipe"),
    [
        ("tiny_llava15", "ln_vt_lora_llm"),
        pytest.param("tiny_qwen25vl", "fft", marks=SLOW),
        pytest.param("tiny_internvl3", "lora_vt_llm", marks=SLOW),
        pytest.param("tiny_gemma3", "lora_llm", marks=SLOW),
        pytest.param("tiny_qwen3vl_moe", "lora_llm", marks=SLOW),
    ],
)
def test_the_plan_of_a_step_is_what_the_step_takes(family: str, recipe: str) -> None:
    config = compose(f"model={family}", f"recipe={recipe}")
    found, step = planned(config), real(config)
    measured = step.trace()
    assert found.peak == pytest.approx(measured.peak, rel=0.01)
    assert found.parts == pytest.approx(measured.parts, rel=0.05, abs=4096)
    assert found.after_forward == pytest.approx(step.counted_after_forward(), rel=0.03)


@pytest.mark.parametrize(
    "choices",
    [
        ["precision=bf16", "trainer.gradient_checkpointing=true", "optim=adafactor"],
        pytest.param(["optim=muon", "recipe=dora_llm", "batching=packed"], marks=SLOW),
    ],
)
def test_precision_recompute_and_optimiser_are_planned(choices: list[str]) -> None:
    config = compose("model=tiny_llava15", "recipe=lora_vt_llm", *choices)
    assert planned(config).peak == pytest.approx(real(config).trace().peak, rel=0.01)


def test_a_micro_batch_that_is_not_its_steps_first_finds_all_gradients_there() -> None:
    config = compose("model=tiny_llava15", "recipe=fft")
    first, later = planned(config), planned(config, gradients_there=True)
    step = real(config)
    assert later.peak == pytest.approx(step.trace(gradients_there=True).peak, rel=0.01)
    assert later.peak > first.peak


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "within"), [("lora_llm_nf4", 0.02), ("lora_llm_int8", 0.05)])
def test_stand_ins_take_what_bitsandbytes_takes(recipe: str, within: float) -> None:
    config = compose("model=tiny_llava15", f"recipe={recipe}", "precision=bf16")
    found, measured = planned(config), real(config).trace()
    assert found.peak == pytest.approx(measured.peak, rel=within)
    assert found.parts["quantised base"] > measured.parts["quantised base"]  # whose scales are no parameters


def midsize(folder: Path) -> str:
    """A random Qwen2.5-VL of about 100 M parameters, in the proportions of a large one; returns its folder."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    spec = compose("model=tiny_qwen25vl").model
    config = AutoConfig.from_pretrained(spec.folder())
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers, text.layer_types = 768, 2560, 10, None
    text.layer_types = ["full_attention"] * 10
    text.num_attention_heads, text.num_key_value_heads = 12, 2
    vision.hidden_size, vision.intermediate_size, vision.depth, vision.num_heads = 384, 1024, 8, 6
    vision.out_hidden_size = 768
    text.rope_parameters["mrope_section"] = [8, 12, 12]
    model = AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(folder)
    spec.load_processor().save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["fft", "lora_vt_llm"])
def test_the_plan_of_a_model_of_100_million_weights(recipe: str, tmp_path: Path) -> None:
    config = compose("model=qwen25vl", f"model.path={midsize(tmp_path)}", f"recipe={recipe}", "precision=bf16")
    found = planned(config)
    step = real(config)
    assert found.peak == pytest.approx(step.trace().peak, rel=0.02)
    assert found.after_forward == pytest.approx(step.counted_after_forward(), rel=0.05)
