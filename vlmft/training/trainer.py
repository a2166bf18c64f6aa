"""The step of every trainer, on transformers' Trainer; what it minimises is an `Objective`.

The seam: Trainer sees a loader whose every item is one optimiser step, and gradient_accumulation_steps = 1. The cut
into micro-batches happens inside `training_step`, which may make as many as a step needs. accelerate's sync flag says
which of them is the last, for DDP (`no_sync`) as for DeepSpeed (its accumulation boundary).
"""

import contextlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate.utils import gather_object
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from vlmft.encoding.batching import BatchingSpec
from vlmft.encoding.collate import Collator
from vlmft.encoding.loading import EncodedGroup
from vlmft.errors import ConfigError, DataError, NumericError, VlmftError
from vlmft.training.flops import FlopRates
from vlmft.training.loss import keep_a_gradient
from vlmft.training.meters import Meters, StepTotals, peak_memory
from vlmft.training.objective import Figure, Objective, Unit
from vlmft.training.optim import OptimSpec
from vlmft.training.ranks import world_size
from vlmft.training.steps import StepLoader
from vlmft.training.stop import StopRequest

logger = logging.getLogger(__name__)


@dataclass
class Parts:
    """What the trainer needs beside transformers' arguments."""

    loader: StepLoader
    collator: Collator
    objective: Objective[Any]
    batching: BatchingSpec
    optim: OptimSpec
    groups: Callable[[Any], list[dict[str, Any]]]
    max_bad_samples: int = 0
    max_oom_retries: int = 0
    stop: StopRequest = field(default_factory=StopRequest)
    on_log: Callable[[dict[str, Any]], None] | None = None
    """Takes each line of figures, and a line for each sample that is left out."""
    flops: FlopRates | None = None
    """What a sample's useful operations follow from; None: they are not counted."""
    peak_tflops: float | None = None
    """What all ranks' devices can do together, where it is known."""
    look_at_packs: Callable[[Any, Sequence[Sequence[Any]]], None] | None = None
    """Takes the model and the packs of each step before it is computed, where samples are packed."""


class Saves(Protocol):
    """What can save a trainer's whole state; `checkpoint.Checkpoints` does."""

    def save(self) -> None:
        """Save the state after the current step."""

    def consider(self, metric: str, score: float) -> None:
        """Keep the state after the current step where no earlier one scored as high."""


class StepTrainer(Trainer):
    """transformers' Trainer with vlmft's step, optimiser groups and meters."""

    optimizer: Any

    def __init__(self, model: Any, args: TrainingArguments, parts: Parts, callbacks: list[TrainerCallback]) -> None:
        super().__init__(model=model, args=args, callbacks=callbacks)
        self.remove_callback(PrinterCallback)
        self.parts = parts
        keep_a_gradient(model)
        self.meters = Meters(parts.peak_tflops)
        parts.loader.on_wait = self.meters.wait
        self.last_figures: dict[str, float | None] = {}
        self.step_ids: list[str] = []
        """The samples of the step under way, on this rank."""
        self.bad_samples: dict[str, str] = {}
        """The samples left out so far, on any rank: id -> reason."""
        self.oom_retries = 0
        """How often memory has run out so far; each time micro-batches are halved, for the rest of the run."""
        self.checkpoints: Saves | None = None
        """Where a run that is asked to stop saves itself."""
        self.judge: Callable[[], None] | None = None
        """What a callback that sets `control.should_evaluate` wants done; after the step's figures, before a save."""
        self._check_distribution()

    def _check_distribution(self) -> None:
        """accelerate falls back to a single process in silence; a run on the wrong number of ranks must not start."""
        if self.accelerator.num_processes != world_size():
            raise ConfigError(
                f"{world_size()} ranks were asked for, accelerate runs on {self.accelerator.num_processes} "
                f"({self.accelerator.distributed_type}); unset the ACCELERATE_* variables of the environment"
            )

    def get_train_dataloader(self) -> Any:
        """One item a step; already this rank's share, so accelerate has nothing to split."""
        return self.parts.loader

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The chosen optimiser over the recipe's groups."""
        if self.optimizer is None:
            self.optimizer = self.parts.optim.build(self.parts.groups(self.model))
        return self.optimizer

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:
        """Nothing to count here: `training_step` knows the step's supervised tokens."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: transformers' figure ignores pictures and frozen parts."""
        return 0

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """All micro-batches of one step: forward and backward. Returns the loss, the same on every rank."""
        if not model.training:  # the walk through all modules costs 0.15 ms even on a tiny model
            model.train()
        step = self._agree(inputs)
        self.step_ids = [sample.id for sample in step.samples]
        units = self.parts.objective.begin(self.state.global_step, step)
        totals = self._totals(step, units)
        loss, slots, cuts = self._all_micro_batches(model, units, totals)
        loss = self._total_loss(loss)
        batching = self.parts.batching
        budget = cuts * batching.max_tokens if batching.packs else 0
        self.meters.add(totals, sum(unit.num_tokens for unit in units), slots, float(loss), budget)
        return loss

    def _all_micro_batches(
        self, model: Any, units: Sequence[Unit], totals: StepTotals
    ) -> tuple[torch.Tensor, int, int]:
        """Forward and backward, in finer micro-batches where memory runs out and `max_oom_retries` is not used up.

        Returns:
            This rank's share of the loss, the token slots that went through, padding included, and the micro-batches.
        """
        while True:
            cuts = self._cuts(units, min(totals.most_micro_batches * 2**self.oom_retries, len(units)))
            figures: dict[str, Figure] = {}
            try:
                if self.parts.look_at_packs is not None:
                    self.parts.look_at_packs(model, [[units[i] for i in indices] for indices in cuts])
                loss, slots = self._forward_backward(model, units, cuts, totals, figures)
                self.meters.note(figures)
                return loss, slots, len(cuts)
            except torch.OutOfMemoryError as error:
                if self.oom_retries == self.parts.max_oom_retries or len(cuts) == len(units):
                    raise
                reason = str(error).splitlines()[0]
            # Not in the handler: the error holds on to the frames, and they to what fills the memory.
            self.oom_retries += 1
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            logger.warning(
                "step %d: %s; it is tried again, and micro-batches are cut to 1/%d from here on (trainer.oom_retries)",
                self.state.global_step + 1,
                reason,
                2**self.oom_retries,
            )

    def _forward_backward(
        self,
        model: Any,
        units: Sequence[Unit],
        cuts: list[list[int]],
        totals: StepTotals,
        figures: dict[str, Figure],
    ) -> tuple[torch.Tensor, int]:
        """All micro-batches once; what they say beside the loss is added to `figures`."""
        loss = torch.zeros((), device=self.args.device)
        slots = 0
        for number, indices in enumerate(cuts):
            last = number == len(cuts) - 1
            self.accelerator.gradient_state._set_sync_gradients(last)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                share = self.parts.objective.share(model, [units[i] for i in indices], totals.weights)
                # DDP and DeepSpeed average gradients over ranks; the loss is a sum over them.
                self.accelerator.backward(share.loss * self.accelerator.num_processes)
            loss += share.loss.detach()
            slots += share.slots
            for name, (amount, weight) in share.figures.items():
                before = figures.get(name, (0.0, 0.0))
                figures[name] = (before[0] + amount, before[1] + weight)
        return loss, slots

    def _cuts(self, units: Sequence[Unit], at_least: int = 1) -> list[list[int]]:
        kinds = self.parts.collator.kinds(units)
        batching = self.parts.batching
        lengths = [unit.num_tokens if batching.packs else unit.num_places for unit in units]
        return batching.micro_batches(lengths, at_least, kinds)

    def _agree(self, step: EncodedGroup) -> EncodedGroup:
        """Stop, refuse bad samples, or find that a rank has none left, on all ranks alike; what is to be trained on.

        Ranks that came to different shares, where a header could be read on some alone, take the step in turn instead.
        """
        new = {name: reason for name, reason in step.bad.items() if name not in self.bad_samples}
        stop = self.parts.stop
        stopping, interrupted, num_new, idle_ranks, shares, squares = self._sum(
            [bool(stop.reason), stop.interrupted, len(new), not step.samples, step.shares, step.shares**2]
        )
        if stopping:
            stop.interrupted = bool(interrupted)
            if self.checkpoints is not None:
                self.checkpoints.save()
            stop.stop_at(f"after step {self.state.global_step}")
        if int(shares) ** 2 != int(squares) * self.accelerator.num_processes:  # equal only where all numbers are
            number = self.state.global_step + 1
            logger.warning("step %d: ranks see its files differently; it is shared out in turn", number)
            again = self._in_turn()
            if isinstance(again, VlmftError):
                raise again
            return self._agree(again)
        if num_new:
            self._leave_out(new)
        if idle_ranks:
            raise DataError(
                f"step {self.state.global_step + 1}: no usable sample is left for {idle_ranks:.0f} of the ranks"
            )
        return step

    def _in_turn(self) -> EncodedGroup | VlmftError:
        """The step under way, shared out in turn, in this process: what crashed a loader of any rank would end it."""
        steps, number = self.parts.loader.dataset, self.state.global_step
        known: dict[int, str] = {}
        for crashes in gather_object([steps.crashes_of(number)]):
            known |= crashes
        return steps.in_turn(number, known)

    def _totals(self, step: EncodedGroup, units: Sequence[Unit]) -> StepTotals:
        """Sum over the ranks what the step is divided by and counted in."""
        objective = self.parts.objective
        tokens, pairs, supervised, vision_tokens, samples, *weights = self._sum(
            [
                sum(unit.num_tokens for unit in units),
                sum(unit.num_tokens**2 for unit in units),
                sum(unit.num_supervised for unit in units),
                sum(unit.num_vision_tokens for unit in units),
                len(step.samples),
                *objective.weights(units),
            ]
        )
        if not weights[0]:
            raise self._numeric_error(f"step {{step}} {objective.nothing}. The samples: {{ids}}. Look at their answers")
        return StepTotals(
            supervised_tokens=int(supervised),
            tokens=int(tokens),
            vision_tokens=int(vision_tokens),
            samples=int(samples),
            most_micro_batches=self._most_micro_batches(units),
            weights=tuple(weights),
            flops=self.parts.flops.of(tokens, pairs, vision_tokens, supervised) if self.parts.flops else 0.0,
        )

    def _sum(self, values: Sequence[float]) -> list[float]:
        """The sums of this rank's `values` over all ranks."""
        if self.accelerator.num_processes == 1:
            return [float(value) for value in values]
        local = torch.tensor([float(value) for value in values], dtype=torch.float64, device=self.args.device)
        summed: list[float] = self.accelerator.reduce(local, "sum").tolist()
        return summed

    def is_asked_to_stop(self) -> bool:
        """Whether any rank has got a signal; called on all ranks alike."""
        stop = self.parts.stop
        heard = gather_object([(bool(stop.reason), stop.interrupted)])
        stop.interrupted = any(interrupted for _, interrupted in heard)
        return any(asked for asked, _ in heard)

    def _leave_out(self, new: dict[str, str]) -> None:
        """List samples that are met for the first time on some rank; called on all ranks alike."""
        for share in gather_object([new]):
            for sample_id, reason in share.items():
                if sample_id not in self.bad_samples and self.parts.on_log is not None:
                    self.parts.on_log({"step": self.state.global_step + 1, "bad_sample": sample_id, "reason": reason})
                self.bad_samples[sample_id] = reason
        if len(self.bad_samples) > self.parts.max_bad_samples:
            count = f"{len(self.bad_samples)} bad samples, max_bad_samples={self.parts.max_bad_samples}"
            raise DataError(*self.bad_samples.values(), count)

    def _most_micro_batches(self, units: Sequence[Unit]) -> int:
        """The largest number of micro-batches on any rank: sharded weights need equally many passes everywhere."""
        mine = len(self._cuts(units))
        if self.accelerator.num_processes == 1:
            return mine
        counts = self.accelerator.gather(torch.tensor([mine], device=self.args.device))
        return int(counts.max())

    def _total_loss(self, loss: torch.Tensor) -> torch.Tensor:
        """The step's loss over all ranks, checked before the weights are touched."""
        own = float(loss)
        if self.accelerator.num_processes > 1:
            loss = self.accelerator.reduce(loss, "sum")
        value = float(loss)
        if not math.isfinite(value):
            # Of several ranks, those whose own share is no number hold the samples to look at.
            raise self._numeric_error(
                f"the loss of step {{step}} is {value}; the weights were not updated. The samples: {{ids}}. "
                "Lower optim.lr, or look at these samples",
                to_blame=not math.isfinite(own),
            )
        return loss

    def _numeric_error(self, text: str, to_blame: bool = True) -> NumericError:
        """The error whose `text` has places for {step} and {ids}, those of the ranks that say `to_blame`.

        Called on all ranks alike.
        """
        shares = gather_object([self.step_ids if to_blame else []])
        ids = [sample_id for share in shares for sample_id in share]
        step = self.state.global_step + 1
        return NumericError(text.format(step=step, ids=", ".join(ids)), step=step, samples=ids)

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        # fp16's scaler expects the odd overflow and skips that update by itself.
        if self.args.fp16 is False and not math.isfinite(float(norm)):
            raise self._numeric_error(
                f"the gradient norm of step {{step}} is {float(norm)}; the weights were not updated. "
                "The samples: {ids}. Lower optim.lr, or look at these samples"
            )
        return norm

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Nothing where a run is resumed whose objective had ended it already."""
        if self.parts.objective.is_over:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        """Trainer's place for evaluating, between a step's figures and its checkpoint."""
        self.control.should_evaluate = False  # else the end of the epoch, after the last step, would do it again
        if self.judge is not None:
            self.judge()
        return {}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Trainer's place for saving, after a step's figures are logged; `Checkpoints` asks for it."""
        if self.checkpoints is not None:
            self.checkpoints.save()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the meters since the last line, then hand on to transformers' trackers and to `on_log`."""
        if "loss" not in logs:  # transformers' own summary at the end, counted in its terms
            return
        plan, mixture = self.parts.loader.dataset.plan, self.parts.loader.dataset.mixture
        figures = self._figures()
        line: dict[str, float | None] = logs | self.meters.read() | figures | {"bad_samples": len(self.bad_samples)}
        line["peak_memory_bytes"] = peak_memory(self.args.device)
        samples = self.state.global_step * plan.global_batch_size
        line["pass"] = samples / plan.num_samples
        if len(mixture.shares) > 1:
            line |= {f"share/{entry}": visits / samples for entry, visits in mixture.visits(samples).items()}
        self.last_figures = line
        self.report(line)

    def _figures(self) -> dict[str, float]:
        """What the objective said since the last line, over all ranks; a name may be missing on some of them."""
        if not self.parts.objective.reports:
            return {}
        total: dict[str, tuple[float, float]] = {}
        for share in gather_object([self.meters.progress.figures]):
            for name, (amount, weight) in share.items():
                before = total.get(name, (0.0, 0.0))
                total[name] = (before[0] + amount, before[1] + weight)
        return {name: amount / weight for name, (amount, weight) in total.items() if weight}

    def report(self, values: Mapping[str, float | None]) -> None:
        """Hand a line of figures to transformers' trackers, which take no None, and to `on_log`."""
        super().log({name: value for name, value in values.items() if value is not None})
        self.state.log_history.clear()  # Trainer would keep every line in memory; metrics.jsonl has them
        if self.parts.on_log is not None:
            self.parts.on_log({"step": self.state.global_step} | dict(values))
