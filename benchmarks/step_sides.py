"""The sides of step.py: each a process that trains as its own users would, and takes a step whenever it is told to.

A step lasts from the word to go until the weights are updated: files are read, pictures decoded and batches collated
within it, in the training process itself. What a trainer writes after a step falls into its next one.
"""

import os
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any
from unittest.mock import patch

from step_case import Row

MICRO_BATCH = {"trl": 8, "trl_2": 2, "trainer": 8}
"""Samples: transformers' and TRL's own default, and what TRL's example for vision sets."""


@dataclass(frozen=True)
class Case:
    """What every side trains."""

    model: str
    """The checkpoint's folder."""
    data: str
    """The folder that `step_case.write_data` wrote."""
    rows: tuple[Row, ...]
    """In the file's order."""
    recipe: str
    samples: int
    """Of an optimiser step."""
    steps: int
    lr: float


def take_part(side: str, case: Case, pipe: Connection) -> None:
    """Be one side: say that the training is ready, answer each word with a step's seconds, at the end with losses."""
    import torch

    os.environ |= {"VLMFT_PATH": case.data, "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run = run_vlmft if side in ("packed", "grouped") else run_transformers
        losses = run(side, case, pipe)
    pipe.send(losses)


def words(case: Case, batching: str) -> list[str]:
    """vlmft's command line."""
    return [
        *("dataset=step", "model=qwen25vl", f"model.path={case.model}", "precision=fp32", f"recipe={case.recipe}"),
        *(f"batching={batching}", f"trainer.max_steps={case.steps}", "trainer.num_workers=0", f"optim.lr={case.lr}"),
        *("optim.schedule=constant", "optim.warmup=0", "optim.weight_decay=0", "evaluation=none", "preview=0"),
        *(f"global_batch_size={case.samples}", "recipe.vision_tower.lr_factor=1", "logger=none", "check_s=1"),
        "model.image.max_pixels=null",
    ]


def run_vlmft(batching: str, case: Case, pipe: Connection) -> list[float]:
    """`python -m vlmft.train` in this process."""
    from vlmft import worker
    from vlmft.config.app import run_app
    from vlmft.launch import RanksExit
    from vlmft.run_folder import RunFolder
    from vlmft.train import TrainConfig
    from vlmft.train import train as drive
    from vlmft.training.stop import StopRequest
    from vlmft.training.trainer import StepTrainer

    losses: list[float] = []
    plain_train = StepTrainer.train

    def train(trainer: Any) -> None:
        seed_adapters(trainer.model)
        trainer.add_callback(turns(pipe, losses))
        plain_train(trainer)

    def run_rank(command: list[str], ranks: int, env: dict[str, str], **_: Any) -> RanksExit:
        worker.work(RunFolder.open(command[-1]), StopRequest())
        return RanksExit(0, None, "done")

    with patch.object(StepTrainer, "train", train), patch("vlmft.launch.run_ranks", run_rank):
        if run_app("train", TrainConfig, drive, argv=[*words(case, batching), "run.dir=run"]):
            raise RuntimeError("the run did not end well; its error is on stderr")
    return losses


def run_transformers(side: str, case: Case, pipe: Connection) -> list[float]:
    """TRL's SFTTrainer, or transformers' Trainer with the official processor, and PEFT's adapters."""
    from datasets import Dataset, Image, List
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(case.model, dtype="float32")
    model.accepts_loss_kwargs = True  # else the loss is a mean of the micro-batches' means, and changes with the cut
    processor = AutoProcessor.from_pretrained(case.model)
    rows = [case.rows[number] for number in visits(case)]
    table = {
        "prompt": [[{"role": "user", "content": row.question}] for row in rows],
        "completion": [[{"role": "assistant", "content": row.answer}] for row in rows],
        "images": [list(row.pictures) for row in rows],
    }
    data = Dataset.from_dict(table).cast_column("images", List(Image()))
    losses: list[float] = []
    common: dict[str, Any] = {
        "output_dir": "out",
        "max_steps": case.steps,
        "per_device_train_batch_size": MICRO_BATCH[side],
        "gradient_accumulation_steps": case.samples // MICRO_BATCH[side],
        "learning_rate": case.lr,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "bf16": False,
    }
    callbacks = [turns(pipe, losses)]
    if side.startswith("trl"):
        from trl import SFTConfig, SFTTrainer

        trainer: Any = SFTTrainer(
            model,
            SFTConfig(max_length=None, **common),
            train_dataset=data,
            processing_class=processor,
            peft_config=adapters(case),
            callbacks=callbacks,
        )
    else:
        from peft import get_peft_model
        from transformers import Trainer, TrainingArguments

        if (config := adapters(case)) is not None:
            model = get_peft_model(model, config)
        trainer = Trainer(
            model,
            TrainingArguments(**common),
            data_collator=PlainCollator(processor),
            train_dataset=data,
            callbacks=callbacks,
        )
    seed_adapters(trainer.model)
    trainer.train()
    return losses


class PlainCollator:
    """Conversations as the model takes them, the official processor doing all of it; answers are supervised."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.header = processor.tokenizer("<|im_start|>assistant\n").input_ids

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """One padded batch."""
        texts, pictures = [], []
        for row in rows:
            (question,), answer = row["prompt"], row["completion"]
            content = [{"type": "image"} for _ in row["images"]] + [{"type": "text", "text": question["content"]}]
            texts.append(self.processor.apply_chat_template([{"role": "user", "content": content}, *answer]))
            pictures += row["images"]
        batch = self.processor(text=texts, images=pictures or None, padding=True, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        for ids, label in zip(batch["input_ids"].tolist(), labels, strict=True):
            length = len(self.header)
            starts = [at for at in range(len(ids)) if ids[at : at + length] == self.header]
            label[: starts[-1] + length] = -100
        return {**batch, "labels": labels}


def adapters(case: Case) -> Any:
    """PEFT's configuration for what the recipe trains; None for fft. PEFT's defaults, but for rank and alpha."""
    from peft import LoraConfig

    if case.recipe == "fft":
        return None
    assert case.recipe == "lora_llm"
    layers = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
    return LoraConfig(r=16, lora_alpha=32, target_modules=layers, modules_to_save=["merger"])


def seed_adapters(model: Any) -> None:
    """Give adapters the same first weights on all sides."""
    import torch

    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            seed = zlib.crc32(name.partition("language_model")[2].encode())
            drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
            parameter.data.copy_(drawn / parameter.shape[1] ** 0.5)


def visits(case: Case) -> list[int]:
    """Numbers of the rows as vlmft's run visits them."""
    from common import composed

    from vlmft.data.run_data import open_run_data

    config = composed(*words(case, "grouped"))
    mixture = open_run_data(config.dataset, config.eval_dataset, config.holdout, config.seed).mixture
    return [mixture.at(position).row for position in range(case.samples * case.steps)]


def turns(pipe: Connection, losses: list[float]) -> Any:
    """A callback that takes a step when told to, and says how long it took."""
    from transformers import TrainerCallback

    class Turns(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.wait("ready")

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.wait((time.perf_counter() - self.wall, time.process_time() - self.cpu))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                losses.append(float(logs["loss"]))

        def wait(self, said: Any) -> None:
            pipe.send(said)
            pipe.recv()
            self.wall, self.cpu = time.perf_counter(), time.process_time()

    return Turns()


def useful_tokens(case: Case) -> list[int]:
    """Tokens of each step, without padding, as vlmft counts them."""
    from common import composed

    from vlmft.data.run_data import open_run_data
    from vlmft.encoding.encoder import Encoder

    with patch.dict(os.environ, {"VLMFT_PATH": case.data}):
        config = composed(*words(case, "grouped"))
    encoder = Encoder(config.model, config.model.load_processor())
    mixture = open_run_data(config.dataset, config.eval_dataset, config.holdout, config.seed).mixture
    count = [
        encoder.encode(mixture.read(mixture.at(position))).num_tokens for position in range(case.samples * case.steps)
    ]
    return [sum(count[step * case.samples : (step + 1) * case.samples]) for step in range(case.steps)]
