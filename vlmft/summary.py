"""What a run shows on the screen: its headline, the recipe's table and the result."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlmft.evaluation.compare import Comparison
from vlmft.evaluation.statistics import Interval
from vlmft.run_folder import RunFolder
from vlmft.screen import console as console
from vlmft.screen import format_bytes as format_bytes

if TYPE_CHECKING:
    from rich.table import Table

    from vlmft.data.check import CheckReport
    from vlmft.models.kernels import KernelsInUse
    from vlmft.recipes.table import ComponentRow
    from vlmft.train import TrainConfig


def as_result(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The `eval` part of result.json; its `p_value` is the first metric's."""
    result: dict[str, Any] = {"tuned": {c.metric: c.tuned.value for c in comparisons}}
    if any(c.base for c in comparisons):
        result["base"] = {c.metric: c.base.value for c in comparisons if c.base}
    result["intervals"] = {
        name: {c.metric: [_finite(i.low), _finite(i.high)] for c in comparisons if (i := getattr(c, name)) is not None}
        for name in ("base", "tuned")
    }
    result["n"] = comparisons[0].n
    result["p_value"] = comparisons[0].p_value
    result["tests"] = {c.metric: {"name": c.test, "p_value": c.p_value} for c in comparisons}
    return result


def _finite(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None


def check_line(report: "CheckReport") -> str:
    """How much of the data has been looked at, and what was left out."""
    rest = "" if report.complete else "; the rest is checked as it is read (check_s= gives the check more time)"
    bad = f", {len(report.problems)} of them bad and to be left out" if report.problems else ""
    lines = [f"checked  {report.checked} of {report.total} samples{bad}{rest}"]
    return "\n".join([*lines, *(f"         {problem}" for problem in report.problems)])


def headline(
    config: "TrainConfig", folder: RunFolder, plan: object, shares: Sequence[float], held_out: int, judged: int
) -> str:
    """The run in four lines; derived numbers are shown as arithmetic.

    Args:
        shares: each entry's part of the training stream.
        held_out: samples kept out of training.
        judged: how many of them the model is to answer.
    """
    entries = [f"{name} x {spec.visits:g}" if spec.visits != 1 else name for name, spec in config.dataset.items()]
    if len(entries) > 1:
        entries = [f"{entry} ({share:.1%})" for entry, share in zip(entries, shares, strict=True)]
    rest = "nothing (holdout=0.05 or eval_dataset= would tell whether it got better)"
    if held_out:
        rest = str(held_out) if judged == held_out else f"{held_out}, {judged} of them judged"
    return (
        f"run      {folder.path}\n"
        f"model    {type(config.model).__name__}, {config.model.folder()}, {config.precision}\n"
        f"data     {' + '.join(entries)}; held out: {rest}\n"
        f"steps    {plan}"
    )


def recipe_table(
    rows: "Sequence[ComponentRow]",
    unreached: Sequence[str],
    kernels: "KernelsInUse",
    plain_because: str | None = None,
    found: Sequence[str] = (),
) -> "Table":
    """Policy, parameters and rates of each component, what no gradient reaches, and the kernels found in use.

    Args:
        plain_because: why `model.kernels=auto` has taken no fused kernels.
        found: what `model=auto` found the model to be made of, and what it proved.
    """
    from rich.table import Table

    table = Table(title="what trains", title_justify="left")
    table.add_column("component")
    table.add_column("policy")
    for column in ("parameters", "trainable", "precision", "learning rate", "memory*"):
        table.add_column(column, justify="right")
    for row in rows:
        lowest, highest = row.lr
        rate = "-" if not row.trainable else f"{highest:.1e}"
        if lowest < highest:
            rate = f"{lowest:.1e} to {rate}"
        memory = format_bytes(row.memory_bytes)
        table.add_row(
            row.component, row.policy, f"{row.parameters:,}", f"{row.trainable:,}", row.precision, rate, memory
        )
    parameters, trainable = sum(row.parameters for row in rows), sum(row.trainable for row in rows)
    share = f"{trainable:,} ({trainable / parameters:.2%})"
    table.add_row("all", "", f"{parameters:,}", share, "", "", format_bytes(sum(row.memory_bytes for row in rows)))
    table.caption = "* weights, gradients and optimiser state; without activations"
    if copies := sum(row.copies_bytes for row in rows):
        table.caption += f"\n  of it {format_bytes(copies)} are originals, kept beside what trains in full"
    if unreached:
        table.caption += f"\nno gradient reaches {len(unreached)} trained weights, now frozen: {', '.join(unreached)}"
    table.caption += f"\nattention: {_by_component(kernels.attention)}"
    table.caption += f"\nfused kernels: {_by_component(kernels.fused)}" + (
        f"; {plain_because}" if plain_because else ""
    )
    table.caption += "".join(f"\n{line}" for line in found)
    table.caption_justify = "left"
    return table


def _by_component(found: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{component} {', '.join(names)}" for component, names in found.items()) or "none"


def result_table(comparisons: Sequence[Comparison], folder: RunFolder, base_name: str = "base") -> "Table":
    """Base against tuned, and where the files are."""
    from rich.table import Table

    table = Table(title="held-out samples, 95 % intervals", title_justify="left", caption_justify="left")
    tests = sorted({c.test for c in comparisons})
    for column in ("", base_name, "tuned", f"p ({tests[0]})" if len(tests) == 1 else "p", "n"):
        table.add_column(column, justify="left" if not column else "right")
    for c in comparisons:
        p_value = "-" if c.p_value is None else f"{c.p_value:.2g}"
        if len(tests) > 1 and c.p_value is not None:
            p_value += f" ({c.test})"
        table.add_row(c.metric, _interval(c.base), _interval(c.tuned), p_value, str(c.n))
    table.caption = f"tuned model  {folder.final}\nanswers      {folder.predictions}\nmetrics      {folder.metrics}"
    return table


def _interval(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
