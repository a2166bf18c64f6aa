"""The whole state of a training run, saved and restored: one callback for every trainer.

Trainer's own resume is not used: for most vision-language models it restores almost nothing, as the names it saves
are not those of the live model (Qwen2.5-VL: 56 of 57 tensors stayed at their start value, with a warning only), and it
takes a changed file or a missing optimiser in silence. Here trained tensors go by live name, strictly.
"""

import pickle
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from vlmft.errors import StorageError
from vlmft.training import commit
from vlmft.training.meters import Progress
from vlmft.training.ranks import rank, world_size

if TYPE_CHECKING:
    from vlmft.training.trainer import StepTrainer

_WEIGHTS = "trained.safetensors"
_STATE = "state.pt"


@dataclass(frozen=True)
class Best:
    """The step after which the model scored highest on `metric` so far."""

    metric: str
    step: int
    score: float


class Checkpoints(TrainerCallback):
    """Saves every so many steps, keeps the newest and the best, and restores one at the start.

    Args:
        trainer: whose state it is; every rank has one.
        folder: of all checkpoints of the run.
        every: steps between two checkpoints; None saves only where `save` is called.
        keep: how many of the newest stay.
        facts: what each checkpoint says of its run, for whoever wants to continue it.
        start: the checkpoint to begin from.
    """

    def __init__(
        self,
        trainer: "StepTrainer",
        folder: Path,
        every: int | None,
        keep: int,
        facts: Mapping[str, Any],
        start: commit.Committed | None,
    ) -> None:
        self.trainer = trainer
        self.folder = folder
        self.every = every
        self.keep = keep
        self.facts = facts
        self.start = start
        self.last_step = start.step if start else 0
        self.best: Best | None = None
        trainer.checkpoints = self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore `start`, where there is one: the model, the optimiser and the schedule exist by now."""
        if self.start is not None:
            self._restore(self.start.folder)
            state.global_step = self.start.step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask Trainer to save where a checkpoint is due: it does so once the step's figures are logged."""
        if self.every is not None and state.global_step % self.every == 0 and state.global_step < state.max_steps:
            control.should_save = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Obey a signal that came during the last step; there is no later one to obey it in."""
        if self.trainer.is_asked_to_stop():
            self.save()
            self.trainer.parts.stop.stop_at(f"after step {state.global_step}")

    def save(self) -> None:
        """Save the state after the current step, on all ranks at once; nothing where that step is saved already.

        Raises:
            StorageError: on every rank, where any of them cannot write a file; earlier checkpoints are untouched.
        """
        step = self.trainer.state.global_step
        if step == self.last_step:
            return
        folder = commit.checkpoint_folder(self.folder, step)
        _on_every_rank(lambda: commit.begin(folder) if rank() == 0 else None)
        _on_every_rank(lambda: commit.write_each(commit.partial_folder(folder), self._writers()))
        _on_every_rank(lambda: self._commit(folder, step) if rank() == 0 else None)
        self.last_step = step

    def consider(self, metric: str, score: float) -> None:
        """Take note of the model's score after the current step; where none was higher, Trainer is asked to save it."""
        if self.best is None or self.best.metric != metric or score > self.best.score:
            self.best = Best(metric, self.trainer.state.global_step, score)
            self.trainer.control.should_save = True

    def restore_best(self) -> str | None:
        """Give the model the trained weights of the best step.

        Returns:
            Why they could not be had, where that is so: the model then keeps those of the last step.
        """
        if self.best is None or self.best.step == self.trainer.state.global_step:
            return None
        try:
            self._restore_weights(
                commit.verify(commit.checkpoint_folder(self.folder, self.best.step)).folder / _WEIGHTS
            )
        except StorageError as error:
            return str(error)
        return None

    def _writers(self) -> dict[str, Callable[[Path], None]]:
        """What this rank writes, by file name."""
        own = self._rank_state()
        writers: dict[str, Callable[[Path], None]] = {_rank_file(rank()): lambda path: torch.save(own, path)}
        if rank() == 0:
            trained, shared = self._trained(), self._shared_state()
            writers[_WEIGHTS] = lambda path: save_file(trained, path, metadata={"format": "pt"})
            writers[_STATE] = lambda path: torch.save(shared, path)
        return writers

    def _commit(self, folder: Path, step: int) -> None:
        commit.commit(folder, step, self.facts)
        best = commit.checkpoint_folder(self.folder, self.best.step) if self.best else None
        commit.rotate(self.folder, self.keep, folder, best)

    def _trained(self) -> dict[str, torch.Tensor]:
        named = self.trainer.model.named_parameters()
        return {name: parameter.detach().cpu().contiguous() for name, parameter in named if parameter.requires_grad}

    def _shared_state(self) -> dict[str, Any]:
        scaler = self.trainer.accelerator.scaler
        return {
            "optimizer": self.trainer.optimizer.state_dict(),
            "scheduler": self.trainer.lr_scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "best": None if self.best is None else asdict(self.best),
        }

    def _rank_state(self) -> dict[str, Any]:
        kind, keys, *rest = np.random.get_state()
        return {
            "python": random.getstate(),
            "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
            "bad_samples": dict(self.trainer.bad_samples),
            "oom_retries": self.trainer.oom_retries,
            "meters": asdict(self.trainer.meters.progress),
            "last_figures": dict(self.trainer.last_figures),
            "objective": self.trainer.parts.objective.state(),
        }

    def _restore(self, folder: Path) -> None:
        self._restore_weights(folder / _WEIGHTS)
        shared = _read_state(folder / _STATE)
        self._restore_optimizer(shared["optimizer"], folder / _STATE)
        self._restore_schedule(shared["scheduler"])
        if shared["scaler"] is not None and self.trainer.accelerator.scaler is not None:
            self.trainer.accelerator.scaler.load_state_dict(shared["scaler"])
        if (
            shared["best"] is not None and folder.parent == self.folder
        ):  # another run's best is not in this one's folder
            self.best = Best(**shared["best"])
        file = folder / _rank_file(rank())
        same_ranks = file.is_file()  # else there were fewer, which `resume_allow` let through
        own = _read_state(file if same_ranks else folder / _rank_file(0))
        self.trainer.bad_samples |= own["bad_samples"]
        self.trainer.oom_retries = own["oom_retries"]
        self.trainer.meters.resume(Progress(**own["meters"]))
        self.trainer.last_figures = own["last_figures"]
        if same_ranks:
            self.trainer.parts.objective.restore(own["objective"])
            _restore_random(own)

    def _restore_weights(self, file: Path) -> None:
        saved = load_file(file)
        live = {name: p for name, p in self.trainer.model.named_parameters() if p.requires_grad}
        if saved.keys() != live.keys():
            missing, unexpected = sorted(live.keys() - saved.keys()), sorted(saved.keys() - live.keys())
            raise StorageError(
                f"{file}: does not fit this run's model: {len(missing)} trained weights missing {missing[:3]}, "
                f"{len(unexpected)} unexpected {unexpected[:3]}"
            )
        for name, tensor in saved.items():
            if tensor.shape != live[name].shape:
                raise StorageError(
                    f"{file}: does not fit this run's model: {name} is {list(tensor.shape)}, "
                    f"expected {list(live[name].shape)}"
                )
        with torch.no_grad():
            for name, tensor in saved.items():
                live[name].copy_(tensor)

    def _restore_optimizer(self, saved: dict[str, Any], file: Path) -> None:
        """Restore the moments. Rate, decay and their like stay this run's own: `resume_allow` may have changed them."""
        own = self.trainer.optimizer.state_dict()["param_groups"]
        groups = [[group["params"] for group in found] for found in (saved["param_groups"], own)]
        keys = [set(found[0]) for found in (saved["param_groups"], own)]
        if groups[0] != groups[1] or keys[0] != keys[1]:
            raise StorageError(f"{file}: its optimiser does not fit this run's; begin a new run instead")
        self.trainer.optimizer.load_state_dict({"state": saved["state"], "param_groups": own})

    def _restore_schedule(self, saved: dict[str, Any]) -> None:
        """Go to the saved place in this run's own schedule."""
        schedule = self.trainer.lr_scheduler
        if not isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):  # it follows the loss, not the step
            schedule.load_state_dict(saved)
            return
        schedule.load_state_dict(saved | {"base_lrs": schedule.base_lrs})
        step = schedule.last_epoch
        rates = [base * at(step) for base, at in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
        for group, rate in zip(self.trainer.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        schedule._last_lr = rates


def _read_state(file: Path) -> dict[str, Any]:
    """Read what `torch.save` wrote; a pickle that would run code is refused unread, whatever the manifest says.

    Raises:
        StorageError: the file holds anything but plain values and tensors.
    """
    try:
        state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise StorageError(
            f"{file}: is no state that vlmft wrote: {str(error).splitlines()[0]}; remove {file.parent}, and the run "
            "goes on from the checkpoint before it"
        ) from None
    return state


def _restore_random(own: dict[str, Any]) -> None:
    random.setstate(own["python"])
    kind, keys, *rest = own["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(own["torch"])
    if own["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(own["cuda"])


def _rank_file(number: int) -> str:
    return f"rank-{number:05d}.pt"


def _on_every_rank(action: Callable[[], object]) -> None:
    """Run `action` and wait for the other ranks; what fails on one fails on all, so that none waits for ever.

    Raises:
        StorageError: of any rank.
    """
    problems: tuple[str, ...] = ()
    try:
        action()
    except StorageError as error:
        problems = error.problems
    if world_size() > 1:
        shares: list[Any] = [None] * world_size()
        torch.distributed.all_gather_object(shares, problems)
        problems = tuple(problem for share in shares for problem in share)
    StorageError.raise_if(problems)
