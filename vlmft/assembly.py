"""The parts of a run, each built from its config. `worker.work` puts them together."""

import contextlib
import json
import logging
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft.checking.quarantine import QUARANTINE, Quarantine
from vlmft.data.check import examine
from vlmft.data.problems import SampleError
from vlmft.data.run_data import RunData, open_run_data
from vlmft.encoding.encoder import Encoder
from vlmft.encoding.time_limit import TimeLimit
from vlmft.errors import ConfigError, DataError, UnprovenError
from vlmft.models import Auto
from vlmft.run_folder import RunFolder
from vlmft.tasks import Kit, Task
from vlmft.training.ranks import rank, world_size
from vlmft.training.step_plan import StepPlan

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from transformers import TrainingArguments

    from vlmft.evaluation.answers import Answer
    from vlmft.evaluation.judge import Judge
    from vlmft.models import Precision
    from vlmft.recipes.table import ComponentRow
    from vlmft.train import TrainConfig
    from vlmft.training.balance import Costs
    from vlmft.training.checkpoint import Checkpoints
    from vlmft.training.commit import Committed
    from vlmft.training.flops import FlopRates
    from vlmft.training.objective import Objective
    from vlmft.training.trackers import Guard
    from vlmft.training.trainer import StepTrainer


_PREVIEW_S = 10.0  # for the samples of preview.html; each may take its own sample_timeout_s


def quiet_libraries() -> None:
    """One voice a run: libraries' bars and notices off, warnings from rank 0 alone."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP's word about unused parameters, which may come any step
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads and loader processes do not mix
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    level = logging.WARNING if rank() == 0 else logging.ERROR
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    # PEFT imports bitsandbytes wherever it is installed, which then reports on kernels that nothing here asked for.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Deprecations between these three are theirs to settle.
    warnings.filterwarnings("ignore", category=FutureWarning, module="accelerate|peft|transformers")
    if rank() != 0:
        warnings.simplefilter("ignore")


def seed_everything(seed: int) -> None:
    """Seed what draws from global state: the adapters' first weights and dropout."""
    from transformers import set_seed

    set_seed(seed)


def leave_process_group() -> None:
    """End a distributed run in order; torch warns, and NCCL may hang, where it is not done."""
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def open_data(config: "TrainConfig") -> RunData:
    """The run's data; the driver has looked at it already."""
    return open_run_data(config.dataset, config.eval_dataset, config.holdout, config.seed, config.mixing_temperature)


def plan_steps(config: "TrainConfig", data: RunData) -> StepPlan:
    """How many steps there are and what each is made of."""
    return StepPlan.derive(
        len(data.mixture), config.global_batch_size, config.trainer.epochs, config.trainer.max_steps, world_size()
    )


def training_arguments(config: "TrainConfig", folder: RunFolder, plan: StepPlan) -> "TrainingArguments":
    """transformers' arguments; the process group exists from here on."""
    from vlmft.training.arguments import training_arguments as build

    return build(
        folder.path,
        config.trainer,
        config.optim,
        config.strategy,
        config.precision,
        config.seed,
        plan.num_steps,
    )


def trackers(config: "TrainConfig", folder: RunFolder) -> "list[Guard]":
    """Rank 0's trackers."""
    from vlmft.training.trackers import tracker_callbacks

    return tracker_callbacks(config.logger, folder.path, folder.tb) if rank() == 0 else []


def encoder(config: "TrainConfig", processor: Any) -> Encoder:
    """What encodes the run's samples for the checkpoint."""
    limit = TimeLimit(config.sample_timeout_s)
    try:
        trainer = config.trainer
        return Encoder(config.model, processor, config.batching.max_tokens, limit, trainer.learns, trainer.room)
    except ConfigError as error:
        if isinstance(config.model, Auto) and not isinstance(error, UnprovenError):  # of its chat template
            raise config.model.refused(type(processor).__name__, "; ".join(error.problems)) from error
        raise


def check_encoding(config: "TrainConfig", data: RunData, encoder: Encoder) -> None:
    """Render and count samples, in the order of training, for a quarter of `check_s`; nothing is decoded.

    Raises:
        DataError: more samples than `max_bad_samples` cannot be encoded or are too long; lists them.
    """
    if rank() != 0:
        return
    end = time.monotonic() + config.check_s / 4
    problems: dict[str, str] = {}
    for position in range(len(data.mixture)):
        if time.monotonic() > end or len(problems) > config.max_bad_samples + 20:
            break
        ref = data.mixture.at(position)
        found = examine(data.mixture.parts[ref.part].source, ref.row, encoder.count)
        if isinstance(found, SampleError):
            problems[found.sample_id] = str(found)
    if len(problems) > config.max_bad_samples:
        raise DataError(*problems.values())


def preview(
    config: "TrainConfig",
    folder: RunFolder,
    data: RunData,
    encoder: Encoder,
    trackers: "list[Guard]",
    console: "Console",
) -> None:
    """Rank 0 shows the first samples as the model will see them, in preview.html and, where it is used, TensorBoard.

    A sample that cannot be encoded is shown with its error. Samples of an entry whose system prompt comes from the
    environment are not shown: no file of a run holds such a value.
    """
    from vlmft.previewing.album import Album
    from vlmft.previewing.page import head_of, render
    from vlmft.previewing.samples import show
    from vlmft.previewing.visits import first
    from vlmft.training.trackers import guarded
    from vlmft.webpage import write_page

    if rank() != 0 or not config.preview:
        return
    album = Album()
    kept_out = folder.entries_kept_out()
    visits = [visit for visit in first(data, config.preview) if visit.id.partition("/")[0] not in kept_out]
    samples = show(visits, encoder, album, config.trainer.num_workers, within_s=_PREVIEW_S)
    head = head_of(config, data, f"samples 1 to {len(visits)} of the training stream of {folder.path}")
    write_page(folder.preview, render(head, samples, album))
    console.print(f"preview  {folder.preview}")
    if board := next((guard for guard in trackers if guard.name == "tensorboard"), None):
        from vlmft.previewing.board import SamplesOnBoard

        trackers.append(guarded("tensorboard", SamplesOnBoard(board.tracker, samples, album)))


@contextlib.contextmanager
def step_trainer(
    config: "TrainConfig",
    task: Task,
    kit: Kit,
    model: Any,
    args: "TrainingArguments",
    objective: "Objective[Any]",
    start: "Committed | None",
    flops: "FlopRates | None" = None,
) -> "Iterator[tuple[StepTrainer, Checkpoints]]":
    """The trainer and its checkpoints, beginning at `start`; on rank 0 with its files and the progress bar open."""
    from vlmft.training.checkpoint import Checkpoints
    from vlmft.training.pack_proof import PackProof
    from vlmft.training.progress import TrainingProgress
    from vlmft.training.steps import StepDataset, StepLoader
    from vlmft.training.trainer import Parts, StepTrainer

    with contextlib.ExitStack() as stack:
        stack.callback(objective.close)
        parts = Parts(
            loader=StepLoader(
                StepDataset(kit.data.mixture, kit.encoder, kit.plan, rank(), step_costs(config, task, kit, model)),
                config.trainer.num_workers,
                start.step if start else 0,
            ),
            collator=kit.collator,
            objective=objective,
            batching=config.batching,
            optim=config.optim,
            groups=task.groups,
            max_bad_samples=config.max_bad_samples,
            max_oom_retries=config.trainer.oom_retries,
            stop=kit.stop,
            flops=flops,
            peak_tflops=peak_of_all(args.device, config.precision),
            look_at_packs=PackProof(kit.collator, config.precision, kit.console.print, task.reading())
            if config.batching.packs
            else None,
        )
        if rank() == 0:
            metrics = stack.enter_context(kit.folder.open_metrics())
            progress = stack.enter_context(TrainingProgress(kit.plan.num_steps, kit.console))
            begins = start.step if start else 0
            quarantine = stack.enter_context(contextlib.closing(Quarantine(kit.folder.path / QUARANTINE, begins)))
            started = time.time()

            def on_log(figures: dict[str, Any]) -> None:
                metrics.append({"step": figures["step"], "time": round(time.time() - started, 4)} | figures)
                if "bad_sample" in figures:
                    quarantine.add(figures["step"], figures["bad_sample"], figures["reason"])
                progress.show(figures)

            parts.on_log = on_log
        trainer = StepTrainer(model, args, parts, kit.trackers)
        saving = (config.trainer.save_every, config.trainer.keep)
        batching = "packed" if config.batching.packs else type(config.batching).__name__.lower()
        facts = {"fingerprint": kit.folder.read_fingerprint(), "batching": batching}
        checkpoints = Checkpoints(trainer, kit.folder.checkpoints, *saving, facts, start)
        trainer.add_callback(checkpoints)
        yield trainer, checkpoints
        for tracker in kit.trackers:
            tracker.close()


def step_costs(config: "TrainConfig", task: Task, kit: Kit, model: Any) -> "Costs | None":
    """By what steps are shared out among the ranks, the same on all; None: in turn."""
    from vlmft.encoding.probe import probe_sample
    from vlmft.training.balance import costs_of

    if world_size() == 1 or not config.trainer.shares_by_cost:
        return None
    backbone, probe = task.backbone(model), probe_sample(kit.encoder)
    inputs, _ = kit.collator.on_device([probe], backbone)
    rows = task.rows(model)
    return costs_of(backbone, config.model, rows, probe, inputs, config.trainer.gradient_checkpointing)


def checkpoint_to_start_from(config: "TrainConfig", folder: RunFolder) -> "Committed | None":
    """The checkpoint that the run goes on from, the same on every rank; None where it begins.

    Raises:
        StorageError: the checkpoint that `resume` names does not verify.
    """
    import torch.distributed

    from vlmft.training import commit

    found: list[Any] = [None]
    if rank() == 0:
        newest, rejected = commit.newest(folder.checkpoints)
        for reason in rejected:
            logging.getLogger(__name__).warning("passed over: %s", reason)
        if rejected:
            folder.write_result(passed_over=rejected)
        if newest is None and config.resume not in ("auto", "none"):  # its own, once it has any: it was continued
            newest = commit.verify(Path(config.resume).expanduser())
        found = [newest]
    if world_size() > 1:
        torch.distributed.broadcast_object_list(found)
    start: Committed | None = found[0]
    if rank() == 0:
        folder.cut_metrics(start.step if start else 0)
    return start


def base_answers(judge: "Judge | None", model: Any, folder: RunFolder, resumed: bool) -> "list[Answer] | None":
    """What the tuned model is compared with; a resumed run, whose model is no longer the base, reads it again."""
    from vlmft.evaluation.answers import read_answers

    if judge is None or not judge.spec.base:
        return None
    kept = folder.predictions / "base.jsonl"
    if resumed and kept.is_file():
        return read_answers(kept)
    return keep(judge.answer_base(model), folder, "base")


def tuned_answers(judge: "Judge", model: Any, folder: RunFolder) -> "list[Answer]":
    """What the tuned model answers; kept in the run folder, with the judge's own pictures."""
    found = keep(judge.answer(model), folder, "tuned")
    if rank() == 0:
        judge.draw(folder.path, found)
    return found


def evaluate_every(judge: "Judge", trainer: "StepTrainer", folder: RunFolder) -> None:
    """Judge the model every `every_steps` while it trains; its scores stand in metrics.jsonl as eval/<metric>.

    Where the best state is to be kept, the last step is judged as well.
    """
    from transformers import TrainerCallback

    steps, best_by = judge.spec.every_steps, judge.spec.best_by
    if steps is None:
        return

    class _Evaluate(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            is_last = state.global_step == state.max_steps
            if best_by is not None if is_last else state.global_step % steps == 0:
                control.should_evaluate = True

    def judge_now() -> None:
        answers = keep(judge.answer(trainer.model), folder, f"step-{trainer.state.global_step:08d}")
        scores = judge.scores(answers)
        trainer.report({f"eval/{name}": value for name, value in scores.items()})
        if best_by is not None and trainer.checkpoints is not None:
            trainer.checkpoints.consider(best_by, scores[best_by])
        trainer.parts.objective.judged(scores)
        trainer.control.should_training_stop = trainer.parts.objective.is_over
        trainer.meters.restart()

    trainer.judge = judge_now
    trainer.add_callback(_Evaluate())


def end_with_best(checkpoints: "Checkpoints", console: "Console") -> dict[str, Any]:
    """Give the model the weights that scored best; return what result.json says of them."""
    best = checkpoints.best
    if best is None:
        return {}
    missed = checkpoints.restore_best()
    if missed is None:
        console.print(f"best     step {best.step}, {best.metric} {best.score:.3f}")
        return {"best": asdict(best)}
    logging.getLogger(__name__).warning("the best step's weights are lost, the last step's are taken: %s", missed)
    return {"best": asdict(best) | {"passed_over": missed}}


def keep(answers: "list[Answer]", folder: RunFolder, name: str) -> "list[Answer]":
    """Rank 0 writes the answers as predictions/<name>.jsonl; returns them."""
    from vlmft.evaluation import answers as files

    if rank() == 0:
        files.write_answers(folder.predictions / f"{name}.jsonl", answers)
    return answers


def provenance(folder: RunFolder, data: RunData) -> dict[str, Any]:
    """What is saved with the model beside its weights."""
    environment = json.loads(folder.environment.read_text())
    return {
        "config": folder.config.read_text(),
        "datasets": data.fingerprints(),
        "packages": environment["packages"],
        "git": environment["git"],
    }


def peak_of_all(device: "torch.device", precision: "Precision") -> float | None:
    """TFLOP/s that all ranks' devices can do in 16 bits; None where that is not known, or not what is computed in."""
    import torch

    from vlmft.training.peaks import peak_tflops

    if device.type != "cuda" or precision == "fp32":
        return None
    peak = peak_tflops(torch.cuda.get_device_name(device))
    return None if peak is None else peak * world_size()


def describe_device(device: "torch.device") -> dict[str, Any]:
    """The device as environment.json names it."""
    import torch

    if device.type != "cuda":
        return {"type": device.type, "threads": torch.get_num_threads(), "ranks": world_size()}
    properties = torch.cuda.get_device_properties(device)
    return {
        "type": "cuda",
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "ranks": world_size(),
        "cuda": torch.version.cuda,
    }


def size(rows: "Sequence[ComponentRow]", device: "torch.device") -> dict[str, int]:
    """What a run took, for result.json: parameters, those that were trained, and this rank's peak memory."""
    from vlmft.training.meters import peak_memory

    return {
        "parameters": sum(row.parameters for row in rows),
        "trainable_parameters": sum(row.trainable for row in rows),
        "peak_memory_bytes": peak_memory(device),
    }
