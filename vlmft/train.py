"""Fine-tune a model: `python -m vlmft.train dataset=A+B model=... recipe=...`.

This process is the driver. It composes and checks the run, looks at the data, writes the run folder and starts the
ranks; it never imports torch, so a typo is answered at once and a crash on the device cannot take it along.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pydantic import Field

from vlmft.config.app import Composition, run_app
from vlmft.config.spec import Spec
from vlmft.data import DatasetSpec
from vlmft.encoding import BatchingSpec
from vlmft.errors import ConfigError
from vlmft.evaluation import EvaluationSpec
from vlmft.models import ModelSpec, Precision
from vlmft.recipes import Recipe
from vlmft.scoring import MetricSpec, Reward
from vlmft.training import Logger, OptimSpec, Strategy, TrainerSpec

if TYPE_CHECKING:
    from vlmft.run_folder import RunFolder


class Run(Spec):
    """Where a run writes."""

    name: str = Field(min_length=1, description="a name for people, part of the default run.dir")
    dir: Path = Field(description="folder of everything the run writes; a sweep makes one below it for each job")


class TrainConfig(Spec):
    """Every choice of a training run; conf/train.yaml holds the values."""

    run: Run
    seed: int = Field(ge=0, lt=2**32, description="of every random choice")
    precision: Precision = Field(description="what is computed in; trained weights are kept in fp32")
    global_batch_size: int = Field(ge=1, description="samples in one optimiser step, over all ranks")
    holdout: float = Field(ge=0, lt=1, description="share of each training entry that is held out")
    mixing_temperature: float | None = Field(gt=0, description="evens out the entries' shares of the stream")
    max_bad_samples: int = Field(ge=0, description="samples that may be left out, counted and listed")
    sample_timeout_s: float = Field(gt=0, description="seconds to read and decode one sample in; after that it is bad")
    resume: str = Field(min_length=1, description="auto, none, or the path of a checkpoint")
    resume_allow: tuple[str, ...] = Field(description="keys that may differ from the run that is continued")
    check_s: float = Field(ge=0, description="seconds given to checking the data before any weight is loaded")
    preview: int = Field(ge=0, le=100, description="first samples of the stream that preview.html shows; 0: no page")
    dataset: dict[str, DatasetSpec] = Field(min_length=1)
    eval_dataset: dict[str, DatasetSpec]
    metric: dict[str, MetricSpec]
    reward: dict[str, Reward]
    model: ModelSpec
    recipe: Recipe
    trainer: TrainerSpec
    optim: OptimSpec
    batching: BatchingSpec
    strategy: Strategy
    logger: Logger
    evaluation: EvaluationSpec


def main() -> NoReturn:
    """The command."""
    from vlmft.launch import bind_to_parent
    from vlmft.sweeps.finish import finish_sweep
    from vlmft.sweeps.pool import run_jobs
    from vlmft.sweeps.study import search
    from vlmft.training.ranks import leave

    bind_to_parent()  # as a job of a sweep's pool
    code = run_app("train", TrainConfig, train, sweep_done=finish_sweep, run_jobs=run_jobs, run_search=search)
    leave(code)


def train(config: TrainConfig, composition: Composition) -> int:
    """Carry out one composed run on this machine; return its exit code."""
    from vlmft import launch
    from vlmft.tasks import task_of
    from vlmft.training.step_plan import refuse_uneven_shares

    refuse_packing(config)
    task_of(config).check()
    if launch.joined():
        return join(config, composition)
    ranks = number_of_ranks(config.strategy)
    refuse_uneven_shares(config.global_batch_size, ranks)
    config.model.refuse_missing_folder()
    with opened(config, composition, ranks) as folder:
        if folder is None:
            return 0
        ended = launch.run_ranks(
            [sys.executable, "-m", "vlmft.worker", str(folder.path)],
            ranks,
            env=thread_share(ranks, config.trainer.num_workers),
            shutdown_timeout_s=config.strategy.shutdown_timeout_s,
        )
        folder.settle(ended.exit_code, ended.reason, ended.failed_rank)
        return ended.exit_code


def refuse_packing(config: TrainConfig) -> None:
    """Raise `ConfigError` where samples are to be packed, and the trainer's loss or the model takes none."""
    if not config.batching.packs:
        return
    if not config.trainer.packs:
        raise ConfigError(
            f"batching=packed: the loss of trainer={type(config.trainer).__name__.lower()} takes samples in rows of "
            "their own; take batching=grouped"
        )
    config.model.refuse_packing()


def join(config: TrainConfig, composition: Composition) -> int:
    """Carry out one rank of a run whose ranks another launcher (torchrun) has started."""
    from vlmft import worker
    from vlmft.run_folder import RunFolder
    from vlmft.training.ranks import rank, world_size

    if not composition.run_dir_given:
        raise ConfigError("run.dir: must be given where another launcher starts the ranks; all of them share it")
    if rank() != 0:
        return worker.run_rank(RunFolder.wait_for(composition.run_dir, timeout_s=config.check_s + 60))
    with opened(config, composition, world_size()) as folder:
        if folder is None:
            raise ConfigError(f"run.dir={composition.run_dir} holds this run, finished; choose another run.dir")
        return worker.run_rank(folder)


@contextlib.contextmanager
def opened(config: TrainConfig, composition: Composition, ranks: int) -> "Iterator[RunFolder | None]":
    """Check the data, then hold the run's folder, new or continued; None where the run is finished already."""
    from vlmft import lock
    from vlmft.data.run_data import open_run_data
    from vlmft.resume import fingerprint, open_or_continue
    from vlmft.summary import check_line, console
    from vlmft.tasks import task_of

    data = open_run_data(config.dataset, config.eval_dataset, config.holdout, config.seed, config.mixing_temperature)
    report = data.check(config.check_s, config.max_bad_samples)
    task_of(config).prepare(data)
    console().print(check_line(report))
    found = fingerprint(config, data, ranks, composition.portable)
    with lock.held(composition.run_dir, lock.DRIVER):
        folder, unfinished = open_or_continue(config, composition.portable, composition.run_dir, found)
        if not unfinished:
            console().print(f"run      {folder.path} is finished already; nothing was changed")
            yield None
            return
        with lock.held(folder.path, lock.RANK):
            pass  # a rank that outlived its killed driver is still saving
        folder.start()
        folder.write_result(overrides=list(composition.overrides))
        yield folder


def number_of_ranks(strategy: Strategy) -> int:
    """How many ranks this machine gets."""
    from vlmft.launch import count_devices

    if strategy.ranks != "auto":
        return strategy.ranks
    return 1 if strategy.device == "cpu" else max(1, count_devices())


def thread_share(ranks: int, num_workers: int) -> dict[str, str]:
    """What each rank computes with on the CPU: its share of the cores, less one for each of its loader processes.

    Left alone, torch takes every core in every rank, and threads that wait for each other on a crowded machine make
    a step ten times slower.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks - num_workers))}


if __name__ == "__main__":
    main()
