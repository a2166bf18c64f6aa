"""Preference pairs on disk, a trainer on them, put together as a worker does it, and an answer by itself."""

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console

from tests.support import compose, encoding, save_noise, with_recipe
from tests.training.conftest import Bench
from vlmft.data import PreferenceDataset
from vlmft.data.mixture import Mixture, MixturePart
from vlmft.data.run_data import RunData
from vlmft.data.spec import Source
from vlmft.encoding.encoder import Encoder
from vlmft.models.packing import use_packed_attention
from vlmft.tasks import Kit, Task, task_of
from vlmft.tasks.dpo import DpoTask
from vlmft.training.arguments import training_arguments
from vlmft.training.dpo import PreferenceObjective
from vlmft.training.step_plan import StepPlan
from vlmft.training.steps import StepDataset, StepLoader
from vlmft.training.stop import StopRequest
from vlmft.training.trainer import Parts, StepTrainer
from vlmft.types import Message, Sample


def write_pairs(folder: Path, video: bool = True, text: bool = True) -> Path:
    """Six pairs, fewer where a family takes no video or no text alone; answers of different lengths.

    A picture, two, none, several turns, a video, a system turn.
    """
    for number, (height, width) in enumerate([(56, 56), (56, 112), (84, 56), (60, 90)]):
        save_noise(folder / f"{number}.png", height, width, seed=number)
    turns = [
        {"role": "user", "content": "<image>\nName the colour."},
        {"role": "assistant", "content": "blue"},
        {"role": "user", "content": "And the background?"},
    ]
    system = [
        {"role": "system", "content": "Answer with one word."},
        {"role": "user", "content": "<image>\nWhich digit is written here?"},
    ]
    rows = [
        _row("one", "<image>\nWhat colour is the shape?", "red", "a black background", image=["0.png"]),
        _row("two", "<image>\n<image>\nWhich digit?", "the digit is seven", "no", image=["1.png", "2.png"]),
        _row("turns", turns, "black", "white or black", image=["2.png"]),
        _row("system", system, "nine", "one", image=["0.png"]),
    ]
    if text:
        rows.append(_row("none", "The quick brown fox?", "jumps over the lazy dog", "yes"))
    if video:
        frames = [["0.png"] * 2 + ["0.png", "0.png"]]
        rows.append(_row("video", "<video>\nWhat happens?", "the shape is red", "blue", video=frames))
    path = folder / "pairs.json"
    path.write_text(json.dumps(rows))
    return path


def _row(row_id: str, prompt: Any, chosen: str, rejected: str, **media: Any) -> dict[str, Any]:
    return {"id": row_id, "prompt": prompt, "chosen": chosen, "rejected": rejected} | media


@dataclass
class TaskBench(Bench):
    """A trainer with its task."""

    task: Task | None = None
    kit: Kit | None = None


@dataclass
class PairBench(TaskBench):
    """A trainer on pairs."""

    task: DpoTask | None = None

    @property
    def objective(self) -> PreferenceObjective:
        found = self.trainer.parts.objective
        assert isinstance(found, PreferenceObjective)
        return found


def pair_bench(folder: Path, file: Path, *words: str, model: Any = None, **replaces: Any) -> PairBench:
    """A bench of `python -m vlmft.train trainer=dpo *words` on the pairs of `file`, whose run folder is `folder`."""
    source = PreferenceDataset(data_path=file, frames_fps=2.0).open("mine")
    return PairBench(**vars(task_bench(folder, source, "trainer=dpo", *words, model=model, **replaces)))


def task_bench(folder: Path, source: Source, *words: str, model: Any = None, **replaces: Any) -> TaskBench:
    """A bench of `python -m vlmft.train *words` on the samples of `source`, whose run folder is `folder`."""
    config = compose("trainer.num_workers=0", *words)
    task = task_of(config)
    task.check()
    mixture = Mixture([MixturePart(source, 1, range(len(source)))], config.seed)
    data = task.prepare(RunData(mixture, ()))
    plan = StepPlan.derive(len(mixture), config.global_batch_size, config.trainer.epochs, config.trainer.max_steps, 1)
    args = training_arguments(
        folder, config.trainer, config.optim, config.strategy, config.precision, config.seed, plan.num_steps
    )
    plain, collator = encoding(spec=config.model)
    collator.packs = config.batching.packs
    encoder = Encoder(config.model, plain.processor, config.batching.max_tokens, learns=config.trainer.learns)
    run_folder = SimpleNamespace(path=folder, read_fingerprint=lambda: {"seed": config.seed})
    stop = replaces.pop("stop", StopRequest())
    kit = Kit(data, plan, encoder, collator, run_folder, stop, Console(file=io.StringIO()), [])  # type: ignore[arg-type]
    model = with_recipe(config) if model is None else model
    if config.batching.packs:
        use_packed_attention(model)
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
    return TaskBench(StepTrainer(model, args, Parts(**(parts | replaces)), []), steps, lines, task, kit)


def sample_of(bench: Bench, sample_id: str) -> Sample:
    source = bench.steps.mixture.parts[0].source
    return next(source[row] for row in range(len(source)) if source[row].id == sample_id)


def said_alone(bench: Bench, sample: Sample, answer: str) -> float:
    """The log-probability of an answer to a sample's prompt, by itself: a conversation's last turn, by log_softmax."""
    model, collator, family = bench.model, bench.trainer.parts.collator, bench.trainer.parts.collator.family
    encoder = Encoder(family, collator.processor)
    text = replace(sample, messages=(*sample.messages, Message("assistant", (answer,))), target=None)
    encoded, prompt = encoder.encode(text), encoder.encode_prompt(text)
    batch = collator([encoded])
    with torch.no_grad():
        logits = model(**family.model_inputs(collator.processor, batch.inputs)).logits[0]
    said = encoded.input_ids[len(prompt.input_ids) : int(encoded.supervised.nonzero().max()) + 1]
    start = len(prompt.input_ids) - 1
    log_probs = logits[start : start + len(said)].log_softmax(-1)
    return float(log_probs.gather(1, said[:, None]).sum())
