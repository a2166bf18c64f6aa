"""A plan on the screen."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlmft.planning.trace import (
    ACTIVATIONS,
    ADDED,
    BATCH,
    BUCKETS,
    GRADIENTS,
    HEAD,
    OPTIMISER,
    QUANTISED,
    TEMPORARY,
    WEIGHTS,
)
from vlmft.screen import format_bytes

if TYPE_CHECKING:
    from rich.table import Table

    from vlmft.planning.plan import Plan
    from vlmft.planning.trace import Traced

_FIRST = (WEIGHTS, QUANTISED, ADDED, GRADIENTS, BUCKETS, OPTIMISER)
_LAST = (BATCH, HEAD, TEMPORARY)


def memory_table(plan: "Plan") -> "Table":
    """Memory by part at the peak, with all activations kept and with recompute."""
    from rich.table import Table

    found = Table(title=f"memory of a rank, recipe={plan.recipe}", title_justify="left", caption_justify="left")
    found.add_column("part")
    found.add_column("activations kept", justify="right")
    found.add_column("recomputed", justify="right")
    both = (plan.kept, plan.recomputed)
    for part in _parts(both):
        found.add_row(part, *(format_bytes(traced.of(part)) for traced in both))
    found.add_section()
    found.add_row("peak", *(format_bytes(traced.peak) for traced in both))
    if plan.memory is not None:
        fits = ("yes" if traced.peak <= plan.memory else "no" for traced in both)
        found.add_row(f"fits {format_bytes(plan.memory)}", *fits)
    if plan.budgets:
        found.add_row("largest batching.max_tokens", *(budget(plan, recompute) for recompute in (False, True)))
    found.caption = "\n".join(
        [
            f"{plan.trainable:,} of {plan.parameters:,} parameters train; all their gradients are "
            f"{format_bytes(plan.gradients)}, those at the peak are above",
            f"heaviest micro-batch: {len(plan.heaviest.sizes)} samples, {plan.heaviest.places:,} token places, "
            f"{plan.heaviest.vision_tokens:,} vision and {plan.heaviest.supervised:,} supervised tokens",
            *work_lines(plan),
        ]
    )
    return found


def work_lines(plan: "Plan") -> list[str]:
    """Useful operations, forward and backward, and the hours that they take."""
    work = plan.work
    if work is None:
        return []
    rates = work.rates
    lines = [
        f"FLOPs, forward and backward: {flops(rates.token)} a token, {flops(rates.vision_token)} a vision token in the "
        f"tower,\n{flops(rates.supervised_token)} a supervised token in the head, {flops(rates.token_pair)} a pair of "
        "tokens in attention",
        f"{flops(work.step)} a step, {work.num_steps:,} steps",
    ]
    if work.hours is not None:
        lines[-1] += f": {duration(work.hours)}"
    return lines


def flops(count: float) -> str:
    """Operations for people: 13.1 GFLOP."""
    for unit in ("", "k", "M", "G", "T"):
        if count < 1000 or unit == "T":
            return f"{count:.3g} {unit}FLOP" if count < 1000 else f"{count:,.0f} {unit}FLOP"
        count /= 1000
    raise AssertionError


def duration(hours: float) -> str:
    """A duration for people."""
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min" if hours > 1 / 60 else "less than a minute"


def budget(plan: "Plan", recompute: bool) -> str:
    """The largest token budget that fits, as the table says it."""
    tokens = plan.budgets[recompute]
    if tokens is None:
        return "none"  # that holds the longest sample
    return f"{tokens:,}, a whole step" if tokens >= plan.whole_step else f"{tokens:,}"


def _parts(both: "Sequence[Traced]") -> list[str]:
    """Parts that take anything, in the order of a step."""
    known = {part for traced in both for part in traced.parts}
    activations = sorted(part for part in known if part.startswith(ACTIVATIONS))
    named = [*_FIRST, *activations, *_LAST]
    return [part for part in (*named, *sorted(known - {*named})) if part in known]


def side_by_side(plans: "Sequence[Plan]") -> "Table":
    """One line a recipe."""
    from rich import box
    from rich.table import Table

    found = Table(
        title="side by side", title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    found.add_column("recipe", no_wrap=True)
    for column in ("trains", "weights", "state", "peak", "recomputed", "fits", "max_tokens", "a step", "time"):
        found.add_column(column, justify="right", no_wrap=True)
    found.caption = (
        "state: gradients and optimiser; peak: all activations kept; recomputed: trainer.gradient_checkpointing=true\n"
        "max_tokens: the largest that fits; +: it holds a whole step"
    )
    for plan in plans:
        resting = plan.kept
        found.add_row(
            plan.recipe,
            f"{plan.trainable / plan.parameters:.2%}",
            format_bytes(resting.of(WEIGHTS, QUANTISED, ADDED)),
            format_bytes(plan.gradients + resting.of(OPTIMISER)),
            format_bytes(plan.kept.peak),
            format_bytes(plan.recomputed.peak),
            _verdict(plan),
            "-" if not plan.budgets else budget(plan, _verdict(plan) != "yes").replace(", a whole step", "+"),
            "-" if plan.work is None else flops(plan.work.step),
            "-" if plan.work is None or plan.work.hours is None else duration(plan.work.hours),
        )
    return found


def _verdict(plan: "Plan") -> str:
    if plan.memory is None:
        return "-"
    if plan.kept.peak <= plan.memory:
        return "yes"
    return "recompute" if plan.recomputed.peak <= plan.memory else "no"
