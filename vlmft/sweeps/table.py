"""Runs side by side: as a table on the screen, as a CSV file, and in two lines that say which did best."""

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlmft.run_folder import DONE, PRUNED
from vlmft.screen import format_bytes
from vlmft.sweeps.runs import RunRecord, Score, best, chosen, common_level, differing, fastest, label

WIDTH = 180
"""Columns that the table gets where there is no terminal."""

if TYPE_CHECKING:
    from rich.table import Table


def status(record: RunRecord) -> str:
    """The state, and the first line of why."""
    return f"{record.state}: {record.reason.splitlines()[0]}" if record.reason else record.state


def columns(records: Sequence[RunRecord], level: float | None) -> tuple[list[str], list[list[str]]]:
    """The heads and cells of the table; `level` is the loss that a column says the steps to."""
    metrics = list(dict.fromkeys(metric for record in records for metric in record.tuned))
    heads = ["", "overrides", "status", "loss"]
    heads += [f"{metric} base -> tuned" for metric in metrics]
    if level is not None:
        heads.append(f"steps to {level:.3g}")
    heads += ["trainable", "peak memory", "seconds"]
    keys = differing(records)
    rows = []
    for record in records:
        row = [record.name, label(record, keys), status(record), _number(record.final_loss)]
        for metric in metrics:
            before = f"{_number(record.base[metric].value)} -> " if metric in record.base else ""
            row.append(before + interval(record.tuned.get(metric)))
        if level is not None:
            steps = record.steps_to(level)
            row.append("-" if steps is None else str(steps))
        row.append("-" if record.trainable_parameters is None else f"{record.trainable_parameters:,}")
        row.append("-" if record.peak_memory_bytes is None else format_bytes(record.peak_memory_bytes))
        row.append("-" if record.seconds is None else f"{record.seconds:.0f}")
        rows.append(row)
    return heads, rows


def screen_table(records: Sequence[RunRecord], title: str, loss_below: float | None = None) -> "Table":
    """The table for a terminal, with the verdict below it."""
    from rich.table import Table

    level = common_level(records) if loss_below is None else loss_below
    heads, rows = columns(records, level)
    caption = _plain("\n".join(verdict(records, level)))
    table = Table(title=_plain(title), title_justify="left", caption=caption or None, caption_justify="left")
    for head in heads:
        folds = head in ("overrides", "status")
        table.add_column(head, justify="left" if folds else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_plain(cell) for cell in row))
    return table


def verdict(records: Sequence[RunRecord], level: float | None) -> list[str]:
    """Which run got to `level` first, and which ended best; nothing where there is nothing to compare."""
    if len(records) < 2:
        return []
    lines = []
    keys = differing(records)
    if (quick := fastest(records, level)) is not None and level is not None:
        took = f"{quick.steps_to(level)} steps to a mean loss of {level:.3g}"
        lines.append(f"fastest: {_called(quick, keys)}: {took}, {_number(quick.mean_loss)} on average over its steps")
    if (winner := best(records)) is not None:
        metric = next(iter(winner.tuned), None)
        how = f"{metric} {interval(winner.tuned[metric])}, " if metric is not None else ""
        lines.append(
            f"ends best: {_called(winner, keys)}: {how}mean loss of its last steps {_number(winner.smoothed_loss)}"
        )
    return lines


def csv_text(records: Sequence[RunRecord], loss_below: float | None = None) -> str:
    """The same and more as CSV: a line a run, a column for each key that was chosen differently.

    Units are in the names; `mean_loss` is the area under the loss curve over its length.
    """
    level = common_level(records) if loss_below is None else loss_below
    metrics = list(dict.fromkeys(metric for record in records for metric in record.tuned))
    keys = differing(records)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    head = ["job", *keys, "state", "exit_code", "reason", "steps", "loss", "smoothed_loss", "mean_loss"]
    head += ["loss_level", "steps_to_level"]
    for metric in metrics:
        head += [f"{metric}.{name}" for name in ("base", "tuned", "tuned_low", "tuned_high")]
    writer.writerow([*head, "seconds", "parameters", "trainable_parameters", "peak_memory_bytes", "overrides", "dir"])
    for record in records:
        choice = chosen(record.overrides)
        row: list[object] = [record.name, *(choice.get(key) for key in keys), record.state, record.exit_code]
        row += [record.reason, record.steps, record.final_loss, record.smoothed_loss, record.mean_loss, level]
        row.append(None if level is None else record.steps_to(level))
        for metric in metrics:
            before, after = record.base.get(metric), record.tuned.get(metric)
            row += [before and before.value, after and after.value, after and after.low, after and after.high]
        row += [record.seconds, record.parameters, record.trainable_parameters, record.peak_memory_bytes]
        writer.writerow([*row, " ".join(record.overrides), record.folder])
    return stream.getvalue()


def all_done(records: Sequence[RunRecord]) -> bool:
    """Whether no run is left to be done."""
    return all(record.state in (DONE, PRUNED) for record in records)


def interval(score: Score | None) -> str:
    """A score with its interval, or a dash."""
    if score is None:
        return "-"
    if score.low is None or score.high is None:
        return f"{score.value:.3f}"
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _called(record: RunRecord, keys: Sequence[str]) -> str:
    chose = label(record, keys)
    return f"{record.name} ({chose})" if chose else record.name


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _plain(text: str) -> str:
    """Text that rich shows as it is: `targets=[q_proj]` is no markup."""
    from rich.markup import escape

    return escape(text)
