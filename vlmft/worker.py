"""What every rank runs: `python -m vlmft.worker <run folder>`, started by the driver. `work` is the story of a run."""

import contextlib
import errno
import signal
import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from vlmft import lock, outlet
from vlmft.errors import InterruptedRunError, NumericError, OutOfMemoryError, StorageError, VlmftError
from vlmft.launch import bind_to_parent
from vlmft.run_folder import RunFolder
from vlmft.training.ranks import leave, rank, world_size
from vlmft.training.stop import StopRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from transformers import TrainingArguments

    from vlmft.recipes.table import ComponentRow
    from vlmft.settling import Settled
    from vlmft.tasks import Kit, Task
    from vlmft.train import TrainConfig
    from vlmft.training.commit import Committed
    from vlmft.training.flops import FlopRates
    from vlmft.types import Sample


def main() -> NoReturn:
    """Entry of a rank that the driver started."""
    bind_to_parent()
    leave(run_rank(RunFolder.open(sys.argv[1])))


def run_rank(folder: RunFolder) -> int:
    """Carry out one rank's part of the run; return the exit code. Rank 0 says in result.json how it ended."""
    outlet.install()
    stop = StopRequest()
    stop.install()
    try:
        with lock.held(folder.path, lock.RANK) if rank() == 0 else contextlib.nullcontext():
            work(folder, stop)
        return 0
    except BaseException as error:
        stop.ending = True
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise once more for a dead loader process
        known = classify(error)
        if known is None:
            traceback.print_exc()
            code, reason = 1, f"{type(error).__name__}: {error}"
        else:
            code, reason = known.exit_code, str(known)
            lead = "error: " if world_size() == 1 else f"error: rank {rank()}: "
            sys.stderr.write("".join(f"{lead}{line}\n" for line in reason.splitlines()))
        try:
            if rank() != 0:
                folder.write_last_words(rank(), reason)
            else:
                if isinstance(error, NumericError):
                    folder.write_bad_step(error)
                folder.finish(code, reason)
        except StorageError as full:
            sys.stderr.write(f"error: {full}\n")
        return code


def classify(error: BaseException) -> VlmftError | None:
    """What an error means to the user; None where it is a fault of the program."""
    if isinstance(error, VlmftError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return InterruptedRunError("interrupted")
    if type(error).__name__ == "OutOfMemoryError" and type(error).__module__.startswith("torch"):
        return OutOfMemoryError(
            f"{error}",
            "change, in order of effect: batching.max_tokens (lower), trainer.gradient_checkpointing=true, "
            "model.image.max_pixels (lower), recipe=lora_llm, optim=adamw_8bit",
            "on a single rank, trainer.oom_retries=3 lowers what is computed at once by itself where it has to",
        )
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid"):
        return VlmftError(
            f"{str(error).splitlines()[0].strip()}",
            "a loader process that is killed has mostly used up the machine's memory: lower trainer.num_workers; "
            "the same command goes on from the last checkpoint",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return StorageError(f"{error.filename or 'a file of the run'} cannot be written: {error.strerror}")
    return None


def work(folder: RunFolder, stop: StopRequest) -> None:
    """One run, from its config to its table."""
    from vlmft import assembly, proving, summary
    from vlmft.recipes.saved import hash_weights

    opened = open_run(folder, stop)
    config, task, kit, args, start = opened.config, opened.task, opened.kit, opened.args, opened.start
    console, data, plan = kit.console, kit.data, kit.plan
    assembly.check_encoding(config, data, kit.encoder)
    proven = proving.prove_encoding(config, data, kit.encoder, kit.collator)
    task.check_data(kit)
    judge = task.judge(kit)
    judged = judge.num_samples if judge else 0
    console.print(summary.headline(config, folder, plan, data.mixture.shares, data.num_held_out, judged))
    if opened.settled is not None:
        console.print(str(opened.settled))
    assembly.preview(config, folder, data, kit.encoder, kit.trackers, console)

    base_sha256 = hash_weights(config.model.folder()) if rank() == 0 else {}
    ready = ready_model(config, args.device, task, kit, proven)
    if rank() == 0:
        folder.write_environment(assembly.describe_device(args.device))

    base = assembly.base_answers(judge, ready.model, folder, resumed=start is not None)
    if start:
        console.print(f"resumed  {start.folder}")
    objective = task.objective(ready.model, kit)
    with assembly.step_trainer(config, task, kit, ready.model, args, objective, start, ready.flops) as parts:
        trainer, checkpoints = parts
        if judge:
            assembly.evaluate_every(judge, trainer, folder)
        stop.obey()
        stop.deferred = True
        trainer.train()
        stop.deferred = False
        steps = trainer.state.global_step
        result: dict[str, Any] = {"steps": steps, "train": trainer.last_figures}
        result["samples"] = data.mixture.visits(steps * plan.global_batch_size)
        if steps < plan.num_steps:
            result["stopped_early"] = {"step": steps, "of": plan.num_steps}
            console.print(f"stopped  early, after step {steps} of {plan.num_steps} (trainer.early_stopping)")
        result |= assembly.end_with_best(checkpoints, console)
        if rank() == 0:
            provenance = assembly.provenance(folder, data) | task.save(folder.final, ready.model)
            save_tuned(opened, ready, base_sha256, provenance)
        if judge:
            comparisons = judge.compare(base, assembly.tuned_answers(judge, ready.model, folder))
            result["eval"] = summary.as_result(comparisons)
            if not checkpoints.best:  # else the last step has been judged, and its line is written
                trainer.report({f"eval/{c.metric}": c.tuned.value for c in comparisons})
            console.print(summary.result_table(comparisons, folder, judge.base_name))
        else:
            console.print(f"tuned model  {folder.final}")
    if rank() == 0:
        folder.finish(0, "done", **result, **assembly.size(ready.rows, args.device))
    assembly.leave_process_group()


@dataclass(frozen=True)
class Opened:
    """What a run has before any weight is loaded."""

    config: "TrainConfig"
    task: "Task"
    kit: "Kit"
    args: "TrainingArguments"
    start: "Committed | None"
    """The checkpoint from which it goes on."""
    settled: "Settled | None"
    """What `batching=auto` has come to."""


def open_run(folder: RunFolder, stop: StopRequest) -> Opened:
    """Read config and data, and settle what the config leaves open."""
    from vlmft import assembly, summary
    from vlmft.config.app import load_config
    from vlmft.encoding.collate import Collator
    from vlmft.settling import settle_batching
    from vlmft.tasks import Kit, task_of
    from vlmft.train import TrainConfig

    console = summary.console(quiet=rank() != 0)
    assembly.quiet_libraries()
    config = load_config(folder.config, TrainConfig)
    task = task_of(config)
    config.model.folder()  # before the ranks know of each other: transformers then writes a tiny model on rank 0 alone
    data = task.prepare(assembly.open_data(config))
    plan = assembly.plan_steps(config, data)
    args = assembly.training_arguments(config, folder, plan)
    trackers = assembly.trackers(config, folder)
    start = assembly.checkpoint_to_start_from(config, folder)
    processor = config.model.load_processor()
    encoder = assembly.encoder(config, processor)
    config, settled = settle_batching(config, folder, data, plan, encoder, args.device, start)
    task.config = config
    collator = Collator(config.model, processor, config.batching.packs)
    kit = Kit(data, plan, encoder, collator, folder, stop, console, trackers)
    return Opened(config, task, kit, args, start, settled)


@dataclass(frozen=True)
class Ready:
    """The model as it trains."""

    model: Any
    unreached: "list[str]"
    """Weights that no gradient reaches: they are frozen."""
    rows: "list[ComponentRow]"
    flops: "FlopRates | None"
    """Operations of a step, where its trainer's are known."""


def ready_model(
    config: "TrainConfig", device: "torch.device", task: "Task", kit: "Kit", proven: "Sequence[Sample]"
) -> Ready:
    """Load the model, apply its recipe, and show the table of its components.

    Args:
        proven: the samples on which `model=auto` has proven the encoding.
    """
    from vlmft import assembly, proving, summary
    from vlmft.encoding.probe import probe_sample
    from vlmft.recipes.loading import load_to_train
    from vlmft.recipes.probe import freeze_unreached
    from vlmft.recipes.table import component_kernels
    from vlmft.training.flops import counting_flops, rates_of

    family = config.model
    assembly.seed_everything(config.seed)
    model, plain_because = load_to_train(family, config.recipe, config.precision, device, config.batching.packs)
    found = proving.prove_model(config, model, kit.encoder, kit.collator, proven)
    model = task.finish_model(model, kit)
    backbone = task.backbone(model)
    counting: Any = counting_flops(backbone, family) if task.counts_flops else contextlib.nullcontext()
    with counting as counts:
        unreached = freeze_unreached(backbone, lambda _: task.probe_loss(model, kit))
    flops = rates_of(counts, [probe_sample(kit.encoder)]) if task.counts_flops else None
    rows = task.rows(model)
    kernels = component_kernels(task.backbone(model), family)
    kit.console.print(summary.recipe_table(rows, unreached, kernels, plain_because, found))
    return Ready(model, unreached, rows, flops)


def save_tuned(opened: Opened, ready: Ready, base_sha256: dict[str, str], provenance: dict[str, Any]) -> None:
    """Write the trained weights to `final/`; on rank 0."""
    from vlmft.recipes.saved import save

    config, kit = opened.config, opened.kit
    save(
        kit.folder.final,
        opened.task.backbone(ready.model),
        kit.encoder.processor,
        config.model,
        config.recipe,
        config.precision,
        base_sha256,
        ready.unreached,
        provenance,
    )


if __name__ == "__main__":
    main()
