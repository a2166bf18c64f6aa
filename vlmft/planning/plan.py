"""What one run would take: its heaviest micro-batch is found and its step traced, with recompute and without."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from vlmft.encoding import AutoBatching
from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.errors import ConfigError, VlmftError
from vlmft.planning.build import hollow_model
from vlmft.planning.hollow import Hollow
from vlmft.planning.sizes import Size, count, showing_all, sizes_of, steps_of, with_empty_media
from vlmft.planning.trace import ACTIVATIONS, BATCH, BUCKETS, HEAD, OPTIMISER, TEMPORARY, Traced, trace_step
from vlmft.settling import choose
from vlmft.training.flops import FlopRates, counting_flops, rates_of
from vlmft.training.head import gives_its_heads
from vlmft.training.loss import keep_a_gradient, supervised_loss, supervised_places
from vlmft.training.optim import AdamW8bit
from vlmft.training.step_plan import StepPlan

if TYPE_CHECKING:
    from vlmft.data.run_data import RunData
    from vlmft.plan import PlanConfig
    from vlmft.settling import Settled

GRAIN = 256
"""Token budgets are found to so many tokens."""

PREDICTED = 4
"""Budgets that are tried where costs point; from then on each try halves what is left."""


@dataclass(frozen=True)
class Load:
    """A micro-batch in the figures that its memory follows."""

    sizes: tuple[Size, ...]
    places: int
    """Token places, padding included."""

    @property
    def vision_tokens(self) -> int:
        """Of pictures and videos."""
        return sum(size.vision_tokens for size in self.sizes)

    @property
    def supervised(self) -> int:
        """Rows that the head computes, at most."""
        return sum(size.supervised for size in self.sizes)


@dataclass(frozen=True)
class Costs:
    """Bytes a token place, a vision token and a supervised token, as a traced step shows them."""

    place: float
    vision: float
    supervised: float

    def of(self, load: Load) -> float:
        """What a micro-batch takes beside what is there all the time."""
        return self.place * load.places + self.vision * load.vision_tokens + self.supervised * load.supervised


@dataclass(frozen=True)
class Work:
    """Useful operations, forward and backward."""

    rates: FlopRates
    step: float
    """Of a step over all ranks, on average."""
    num_steps: int
    hours: float | None
    """Of the run, at the share of the device's rate that is reached; None where the rate is not known."""


@dataclass
class Plan:
    """What is printed of one recipe."""

    recipe: str
    memory: int | None
    """Bytes of the device for tensors, where they are known."""
    parameters: int
    trainable: int
    gradients: int
    """Bytes of all gradients."""
    heaviest: Load
    steps_counted: int
    kept: Traced
    """The heaviest step with all activations kept."""
    recomputed: Traced
    """The same with gradient checkpointing."""
    budgets: dict[bool, int | None] = field(default_factory=dict)
    """The largest batching.max_tokens that fits, by whether activations are recomputed; None: not even one sample."""
    work: "Work | None" = None
    whole_step: int = 0
    """The budget at which every step is one micro-batch, or one of each kind: a larger one changes nothing."""


class Planner:
    """Plans one config.

    Raises:
        ConfigError: the trainer is none whose step is known here, or the model's code cannot be run on hollow tensors.
        DataError: the data holds nothing to plan with, or a sample exceeds the token budget.
    """

    def __init__(self, config: "PlanConfig", data: "RunData", ranks: int) -> None:
        self.data, self.ranks = data, ranks
        processor = config.model.load_processor()
        self.encoder = Encoder(config.model, processor, None, None, config.trainer.learns)
        self.step_plan = StepPlan.derive(
            len(data.mixture), config.global_batch_size, config.trainer.epochs, config.trainer.max_steps, ranks
        )
        self.config, self.settled = self._settle(config)
        self.collator = Collator(config.model, processor, self.config.batching.packs)
        self.sizes = sizes_of(data, self.encoder, config.n)
        self.steps = steps_of(self.sizes, max(1, config.global_batch_size // ranks))
        self.hollow = Hollow()
        self.model: Any = None

    def _settle(self, config: "PlanConfig") -> "tuple[PlanConfig, Settled | None]":
        """The config with the batching that the run would settle on: on a GPU, where one is planned for or is here."""
        if not isinstance(config.batching, AutoBatching):
            return config, None
        is_gpu = config.device.memory is not None or config.device.name is not None or torch.cuda.is_available()
        device = torch.device("cuda" if is_gpu else "cpu")
        settled = choose(config, self.data, self.step_plan, self.encoder, device)
        return config.model_copy(update={"batching": settled.spec(config.batching.max_tokens)}), settled

    def plan(self, recipe: str, memory: int | None, tflops: float | None) -> Plan:
        """The plan; `recipe` is its name, `memory` the bytes for tensors, `tflops` the rate, where known."""
        try:
            with self.hollow:
                self._build()
                return self._plan(recipe, memory, tflops)
        except (VlmftError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"plan: the code of {type(self.model).__name__ if self.model is not None else 'this model'} cannot be "
                f"run on tensors without contents ({type(error).__name__}: {reason}): there is no plan for this "
                "checkpoint; training tells what it takes (peak_memory_bytes in metrics.jsonl)"
            ) from error

    def _build(self) -> None:
        from vlmft.encoding.probe import probe_sample
        from vlmft.recipes.probe import freeze_unreached
        from vlmft.tasks import task_of
        from vlmft.tasks.base import probe_loss

        config = self.config
        self.model = hollow_model(config, self.hollow).train()
        inputs, labels = self.collator.on_device([probe_sample(self.encoder)], self.model)
        gives_its_heads(self.model, inputs, supervised_places(labels)[0])  # tried here: no trace is to hold it
        freeze_unreached(self.model, lambda model: probe_loss(model, self.encoder, self.collator))
        keep_a_gradient(self.model)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.gradients = sum(p.numel() * p.element_size() for p in self.trained)
        self.extra: dict[str, int] = {}
        if self.ranks > 1:
            self.extra[BUCKETS] = self.gradients
        self.optimizer: torch.optim.Optimizer | None = None
        if isinstance(config.optim, AdamW8bit):
            self.extra[OPTIMISER] = config.optim.state_bytes(sum(p.numel() for p in self.trained))
            return
        self.optimizer = config.optim.build(task_of(config).groups(self.model))
        for parameter in self.trained:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _plan(self, recipe: str, memory: int | None, tflops: float | None) -> Plan:
        heaviest, kept, _ = self._heaviest(self.config.batching.max_tokens)
        work = self._work([*heaviest.sizes, *self.sizes], tflops)
        self._recompute(True)
        recomputed = self._trace(heaviest)
        plan = Plan(
            recipe=recipe,
            memory=memory,
            parameters=sum(parameter.numel() for parameter in self.config.model.skeleton().parameters()),
            trainable=sum(parameter.numel() for parameter in self.trained),
            gradients=self.gradients,
            heaviest=heaviest,
            steps_counted=len(self.steps),
            kept=kept,
            recomputed=recomputed,
            whole_step=self._budget_of_steps(),
            work=work,
        )
        if memory is not None and self.config.search:
            for recompute, traced in ((True, recomputed), (False, kept)):
                self._recompute(recompute)
                plan.budgets[recompute] = self._largest_budget(memory, heaviest, traced)
        return plan

    def _work(self, chosen: Sequence[Size], tflops: float | None) -> Work:
        """Counted of the first of these that show all, and scaled to all samples."""
        units = [self._unit(size) for size in showing_all(chosen)]
        config, sizes = self.config, self.sizes
        with counting_flops(self.model, config.model) as counts:
            for unit in units:
                supervised_loss(self.model, *self.collator.on_device([unit], self.model)).backward()
        self.model.zero_grad(set_to_none=True)
        rates = rates_of(counts, units)
        mean = [sum(values) / len(sizes) for values in zip(*(size.figures for size in sizes), strict=True)]
        step = rates.of(*mean) * config.global_batch_size
        num_steps = self.step_plan.num_steps
        hours = None
        if tflops is not None:
            hours = step * num_steps / (tflops * 1e12 * config.device.utilisation * self.ranks) / 3600
        return Work(rates, step, num_steps, hours)

    def _recompute(self, on: bool) -> None:
        if on:
            self.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        else:
            self.model.activation_checkpointing_disable()

    def _heaviest(self, max_tokens: int) -> tuple[Load, Traced, Costs]:
        """The micro-batch that takes most under this budget: the one that traced costs point to, until it is traced."""
        load = max(self._loads(max_tokens), key=lambda load: (load.places, load.vision_tokens))
        best: tuple[Load, Traced, Costs] | None = None
        tried: list[Load] = []
        while load not in tried and len(tried) < 4:
            tried.append(load)
            traced = self._trace(load)
            costs = costs_of(traced, load)
            if best is None or traced.peak > best[1].peak:
                best = load, traced, costs
            load = max(self._loads(max_tokens), key=best[2].of)
        assert best is not None
        return best

    def _loads(self, max_tokens: int) -> list[Load]:
        batching = self.config.batching.model_copy(update={"max_tokens": max_tokens})
        loads = []
        for step in self.steps:
            for indices in batching.micro_batches([size.tokens for size in step], kinds=[size.kind for size in step]):
                chosen = tuple(step[i] for i in indices)
                tokens = [size.tokens for size in chosen]
                loads.append(Load(chosen, sum(tokens) if batching.packs else max(tokens) * len(tokens)))
        return loads

    def _trace(self, load: Load) -> Traced:
        """A step of which this is a micro-batch; where a step has several, gradients are there when it begins."""
        units = [self._unit(size) for size in load.sizes]
        share = max(1, self.config.global_batch_size // self.ranks)
        has_others = len(load.sizes) < min(share, max(map(len, self.steps)))
        return trace_step(
            self.model,
            self.optimizer,
            self.config.model,
            self.collator,
            units,
            supervised_loss,
            gradients_there=has_others,
            extra=self.extra,
        )

    def _unit(self, size: Size) -> Encoded:
        return with_empty_media(self.encoder, count(self.data, self.encoder, size.position))

    def _largest_budget(self, memory: int, load: Load, traced: Traced) -> int | None:
        """Steps from traced budget to traced budget until one fits and the next grain would not."""
        longest = max(size.tokens for size in self.sizes)
        fits: int | None = None
        low, high = math.ceil(longest / GRAIN) * GRAIN, self._budget_of_steps()
        tries = 0
        while low <= high:
            costs = costs_of(traced, load)
            resting = traced.peak - costs.of(load)
            if tries < PREDICTED:
                guess = self._largest_predicted(memory - resting, costs, low, high)
            else:
                guess = low + (high - low) // (2 * GRAIN) * GRAIN
            tries += 1
            load = max(self._loads(guess), key=costs.of)
            traced = self._trace(load)
            if traced.peak <= memory:
                fits, low = guess, guess + GRAIN
            else:
                high = guess - GRAIN
        return fits

    def _largest_predicted(self, room: float, costs: Costs, low: int, high: int) -> int:
        """The largest budget from `low` to `high` whose heaviest micro-batch should take at most `room`; else `low`."""
        if max(costs.of(load) for load in self._loads(low)) > room:
            return low
        while high - low >= GRAIN:
            middle = math.ceil((low + high) / 2 / GRAIN) * GRAIN
            if max(costs.of(load) for load in self._loads(middle)) <= room:
                low = middle
            else:
                high = middle - GRAIN
        return low

    def _budget_of_steps(self) -> int:
        """The budget at which each step is one micro-batch, or one of each kind."""
        packs = self.config.batching.packs
        kinds = ((step, kind) for step in self.steps for kind in {size.kind for size in step})
        wholes = ([size.tokens for size in step if size.kind == kind] for step, kind in kinds)
        most = max(sum(tokens) if packs else max(tokens) * len(tokens) for tokens in wholes)
        return math.ceil(most / GRAIN) * GRAIN


def costs_of(traced: Traced, load: Load) -> Costs:
    """What each took in a traced step: the LLM by places, tower and pictures by vision tokens, the head by rows."""
    head = traced.of(HEAD)
    seen = sum(
        size
        for part, size in traced.parts.items()
        if part == BATCH or (part.startswith(ACTIVATIONS) and part != ACTIVATIONS + "llm")
    )
    llm = traced.of(ACTIVATIONS + "llm", TEMPORARY)
    return Costs(llm / max(load.places, 1), seen / max(load.vision_tokens, 1), head / max(load.supervised, 1))
