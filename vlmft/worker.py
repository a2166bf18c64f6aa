"""What every rank runs: `python -m vlmft.worker <run folder>`, started by the driver. `work` is the story of a run."""

import contextlib
import errno
import signal
import sys
import traceback
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

    from vlmft.recipes.table import ComponentRow
    from vlmft.tasks import Kit, Task
    from vlmft.train import TrainConfig
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
    from vlmft.config.app import load_config
    from vlmft.encoding.collate import Collator
    from vlmft.recipes.saved import hash_weights, save
    from vlmft.settling import settle_batching
    from vlmft.tasks import Kit, task_of
    from vlmft.train import TrainConfig

    console = summary.console(quiet=rank() != 0)
    assembly.quiet_libraries()
    config = load_config(folder.config, TrainConfig)
    family, recipe, precision = config.model, config.recipe, config.precision
    task = task_of(config)

    family.folder()  # before the ranks know of each other: transformers then writes a tiny model on rank 0 alone
    data = task.prepare(assembly.open_data(config))
    plan = assembly.plan_steps(config, data)
    args = assembly.training_arguments(config, folder, plan)
    trackers = assembly.trackers(config, folder)
    start = assembly.checkpoint_to_start_from(config, folder)
    processor = family.load_processor()
    encoder = assembly.encoder(config, processor)
    config, settled = settle_batching(config, folder, data, plan, encoder, args.device, start)
    task.config = config
    collator = Collator(family, processor, config.batching.packs)
    kit = Kit(data, plan, encoder, collator, folder, stop, console, trackers)
    assembly.check_encoding(config, data, encoder)
    proven = proving.prove_encoding(config, data, encoder, collator)
    task.check_data(kit)
    judge = task.judge(kit)
    judged = judge.num_samples if judge else 0
    console.print(summary.headline(config, folder, plan, data.mixture.shares, data.num_held_out, judged))
    if settled is not None:
        console.print(str(settled))
    assembly.preview(config, folder, data, encoder, trackers, console)

    base_sha256 = hash_weights(family.folder()) if rank() == 0 else {}
    model, unreached, rows, flops = ready_model(config, args.device, task, kit, proven)
    if rank() == 0:
        folder.write_environment(assembly.describe_device(args.device))

    base = assembly.base_answers(judge, model, folder, resumed=start is not None)
    if start:
        console.print(f"resumed  {start.folder}")
    objective = task.objective(model, kit)
    with assembly.step_trainer(config, task, kit, model, args, objective, start, flops) as (trainer, checkpoints):
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
            provenance = assembly.provenance(folder, data) | task.save(folder.final, model)
            trained = task.backbone(model)
            save(folder.final, trained, processor, family, recipe, precision, base_sha256, unreached, provenance)
        if judge:
            tuned = assembly.keep(judge.answer(model), folder, "tuned")
            if rank() == 0:
                judge.draw(folder.path, tuned)
            comparisons = judge.compare(base, tuned)
            result["eval"] = summary.as_result(comparisons)
            if not checkpoints.best:  # else the last step has been judged, and its line is written
                trainer.report({f"eval/{c.metric}": c.tuned.value for c in comparisons})
            console.print(summary.result_table(comparisons, folder, judge.base_name))
        else:
            console.print(f"tuned model  {folder.final}")
    if rank() == 0:
        folder.finish(0, "done", **result, **assembly.size(rows, args.device))
    assembly.leave_process_group()


def ready_model(
    config: "TrainConfig", device: "torch.device", task: "Task", kit: "Kit", proven: "Sequence[Sample]"
) -> "tuple[Any, list[str], list[ComponentRow], FlopRates | None]":
    """The model as it trains, with what no gradient reaches, its components' rows, and its operations where counted.

    The table of the rows is shown.

    Args:
        proven: the samples on which `model=auto` has proven the encoding.
    """
    from vlmft import assembly, proving, summary
    from vlmft.encoding.probe import probe_sample
    from vlmft.models.kernels import use_kernels
    from vlmft.models.packing import use_packed_attention
    from vlmft.models.tower import use_fast_tower
    from vlmft.recipes.apply import apply_recipe
    from vlmft.recipes.base import load_base
    from vlmft.recipes.dtypes import compute_in, torch_dtype
    from vlmft.recipes.probe import freeze_unreached
    from vlmft.recipes.saved import load_earlier
    from vlmft.recipes.table import component_kernels
    from vlmft.training.flops import counting_flops, rates_of

    family, recipe, dtype = config.model, config.recipe, torch_dtype(config.precision)
    assembly.seed_everything(config.seed)
    model = load_base(family, recipe, dtype, device)
    plain_because = use_kernels(model, family.kernels)
    use_fast_tower(model)
    if config.batching.packs:
        use_packed_attention(model)
    model = apply_recipe(model, recipe, family, dtype)
    if family.adapter is not None:
        load_earlier(family.adapter, model, family, recipe)
    compute_in(model, dtype, device)
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
    return model, unreached, rows, flops


if __name__ == "__main__":
    main()
