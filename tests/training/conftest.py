"""A trainer on the tiny model and a few samples on disk, put together as a worker does it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from tests.support import compose, encoding, with_recipe, write_llava
from vlmft.data import LLaVADataset
from vlmft.data.mixture import Mixture, MixturePart
from vlmft.encoding.loading import EncodedGroup
from vlmft.models.packing import use_packed_attention
from vlmft.recipes.groups import parameter_groups
from vlmft.training.arguments import training_arguments
from vlmft.training.sft import SupervisedObjective
from vlmft.training.step_plan import StepPlan
from vlmft.training.steps import StepDataset, StepLoader
from vlmft.training.stop import StopRequest
from vlmft.training.trainer import Parts, StepTrainer


@dataclass
class Bench:
    """A trainer with what went into it, and the lines that it reported."""

    trainer: StepTrainer
    steps: StepDataset
    lines: list[dict[str, Any]] = field(default_factory=list)

    @property
    def model(self) -> Any:
        return self.trainer.model

    def step(self, number: int = 0) -> EncodedGroup:
        """One step of the data, encoded."""
        step = self.steps[number]
        assert isinstance(step, EncodedGroup), step
        return step

    def weights(self) -> bytes:
        """Every weight, to the bit."""
        return save({name: p.detach().clone() for name, p in self.model.named_parameters()})

    def gradients(self, step: EncodedGroup) -> tuple[float, dict[str, torch.Tensor]]:
        """The loss of `step`, and the gradient that it leaves at each trained weight."""
        self.model.zero_grad(set_to_none=True)
        loss = float(self.trainer.training_step(self.model, step))
        return loss, {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    """Six samples: one picture, two, none, several turns, a picture in a later turn, a system turn."""
    return write_llava(tmp_path / "data")


@pytest.fixture
def bench(tmp_path: Path, data_file: Path) -> Iterator[Callable[..., Bench]]:
    """Make a bench of `python -m vlmft.train *words` on `data_file`; `replaces` are fields of the trainer's parts."""

    def make(*words: str, **replaces: Any) -> Bench:
        config = compose(*words)
        source = LLaVADataset(data_path=data_file).open("mine")
        mixture = Mixture([MixturePart(source, 1, range(len(source)))], config.seed)
        plan = StepPlan.derive(
            len(mixture), config.global_batch_size, config.trainer.epochs, config.trainer.max_steps, 1
        )
        args = training_arguments(
            tmp_path, config.trainer, config.optim, config.strategy, config.precision, config.seed, plan.num_steps
        )
        encoder, collator = encoding(config.batching.max_tokens, config.model)
        collator.packs = config.batching.packs
        model = with_recipe(config)
        if config.batching.packs:
            use_packed_attention(model)
        steps = StepDataset(mixture, encoder, plan, rank=0)
        lines: list[dict[str, Any]] = []
        parts = {
            "loader": StepLoader(steps, num_workers=config.trainer.num_workers),
            "collator": collator,
            "objective": SupervisedObjective(collator),
            "batching": config.batching,
            "optim": config.optim,
            "groups": lambda model: parameter_groups(
                model, config.recipe, config.model, config.optim.lr, config.optim.weight_decay
            ),
            "max_bad_samples": config.max_bad_samples,
            "stop": StopRequest(),
            "on_log": lines.append,
        }
        return Bench(StepTrainer(model, args, Parts(**(parts | replaces)), []), steps, lines)

    threads = torch.get_num_threads()
    yield make
    torch.set_num_threads(threads)
