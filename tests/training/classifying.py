"""A classifier on the tiny model and a few labelled samples on disk, put together as a worker does it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import set_seed

from tests.support import compose, save_noise, with_recipe
from vlmft.data import ClassificationDataset
from vlmft.data.run_data import RunData, open_run_data
from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoder
from vlmft.encoding.loading import EncodedGroup
from vlmft.models.classifier import Classifier
from vlmft.models.packing import use_packed_attention
from vlmft.run_folder import RunFolder
from vlmft.tasks.base import Kit
from vlmft.tasks.classification import ClassificationTask
from vlmft.train import TrainConfig
from vlmft.training.arguments import training_arguments
from vlmft.training.step_plan import StepPlan
from vlmft.training.steps import StepDataset, StepLoader
from vlmft.training.stop import StopRequest
from vlmft.training.trainer import Parts, StepTrainer

CLASSES = ("cat", "dog", "fish")


def write_labelled(folder: Path, multi: bool = False) -> Path:
    """Write six rows: one picture, two, none, a video, a system turn, a prompt that all share; returns the file.

    Classes: three cats, two dogs, one fish; of several labels cat, cat and dog, none, fish, dog, cat and fish.
    """
    for number, (height, width) in enumerate([(56, 56), (56, 112), (84, 56)]):
        save_noise(folder / f"{number}.png", height, width, seed=number)
    frames = [save_noise(folder / f"v{number}.png", 56, 56, seed=10 + number).name for number in range(4)]
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which?"}]
    rows = [
        {"id": "one", "image": "0.png", "prompt": "<image>\nWhich animal is it?"},
        {"id": "two", "image": ["1.png", "2.png"], "prompt": "<image> and <image>: which?"},
        {"id": "none", "prompt": "It purrs and sleeps all day, in the sun if it may. Which animal is it?"},
        {"id": "video", "video": [frames], "prompt": "<video>\nWhich?"},
        {"id": "system", "image": "1.png", "prompt": said},
        {"id": "shared", "image": "2.png"},
    ]
    labels: list[Any] = ["cat", "dog", "cat", "fish", "dog", "cat"]
    if multi:
        labels = [["cat"], ["cat", "dog"], [], ["fish"], ["dog"], ["cat", "fish"]]
    path = folder / "labelled.json"
    path.write_text(json.dumps([row | {"label": label} for row, label in zip(rows, labels, strict=True)]))
    return path


@dataclass
class ClassBench:
    """A trainer with what went into it, and the lines that it reported."""

    config: TrainConfig
    task: ClassificationTask
    kit: Kit
    trainer: StepTrainer
    steps: StepDataset
    lines: list[dict[str, Any]] = field(default_factory=list)

    @property
    def model(self) -> Classifier:
        return self.trainer.model

    def step(self, number: int = 0) -> EncodedGroup:
        step = self.steps[number]
        assert isinstance(step, EncodedGroup), step
        return step

    def gradients(self, step: EncodedGroup) -> tuple[float, dict[str, torch.Tensor]]:
        self.model.zero_grad(set_to_none=True)
        loss = float(self.trainer.training_step(self.model, step))
        return loss, {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}

    def logits(self, step: EncodedGroup) -> torch.Tensor:
        """Of each sample by itself."""
        self.model.eval()
        with torch.no_grad():
            return torch.cat([self.model(**self.kit.collator.on_device([s], self.model)[0]) for s in step.samples])


def labelled_config(data_file: Path, *words: str, multi: bool = False, **changes: Any) -> TrainConfig:
    spec = ClassificationDataset(
        data_path=data_file, eval_data_path=data_file, labels=CLASSES, multi_label=multi, **changes
    )
    small = ("trainer=classification", "global_batch_size=6", "trainer.num_workers=0", "optim.warmup=0")
    config = compose(*small, *words)
    return config.model_copy(update={"dataset": {"mine": spec}})


def opened_data(config: TrainConfig) -> RunData:
    return open_run_data(config.dataset, config.eval_dataset, config.holdout, config.seed, config.mixing_temperature)


def class_bench(folder: Path, config: TrainConfig, **replaces: Any) -> ClassBench:
    """`replaces` are fields of the trainer's parts."""
    task = ClassificationTask(config)
    task.check()
    data = task.prepare(opened_data(config))
    trainer = config.trainer
    plan = StepPlan.derive(len(data.mixture), config.global_batch_size, trainer.epochs, trainer.max_steps, 1)
    processor = config.model.load_processor()
    encoder = Encoder(config.model, processor, config.batching.max_tokens, learns=trainer.learns)
    collator = Collator(config.model, processor, config.batching.packs)
    stop = StopRequest()
    kit = Kit(data, plan, encoder, collator, RunFolder(folder), stop, Console(quiet=True), [])
    set_seed(config.seed)
    base = with_recipe(config)
    if config.batching.packs:
        use_packed_attention(base)
    model = task.finish_model(base, kit)
    args = training_arguments(
        folder, trainer, config.optim, config.strategy, config.precision, config.seed, plan.num_steps
    )
    steps = StepDataset(data.mixture, encoder, plan, rank=0)
    lines: list[dict[str, Any]] = []
    parts = {
        "loader": StepLoader(steps, num_workers=0),
        "collator": collator,
        "objective": task.objective(model, kit),
        "batching": config.batching,
        "optim": config.optim,
        "groups": task.groups,
        "stop": stop,
        "on_log": lines.append,
    }
    return ClassBench(config, task, kit, StepTrainer(model, args, Parts(**(parts | replaces)), []), steps, lines)


def shake_head(model: Classifier) -> None:
    """Give the head weights that tell states apart: as it begins, all of its logits are 0."""
    torch.manual_seed(1)
    torch.nn.init.normal_(model.head.layers[-1].weight, std=0.5)  # type: ignore[arg-type]
