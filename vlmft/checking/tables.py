"""What `validate` shows on the screen of its figures."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vlmft.checking.figures import MIX, EntryFigures, Figures

if TYPE_CHECKING:
    from rich.table import Table

_BARS = " ▁▂▃▄▅▆▇█"


def mix_table(figures: Figures) -> "Table":
    """Samples of each entry, its part of the stream and what its samples show."""
    table = _table("samples", ("entry", "samples", "stream", *MIX, "repeated", "bad"))
    for entry in _rows(figures):
        share = "-" if entry.share is None else f"{entry.share:.1%}"
        counts = [entry.samples, *(entry.mix[kind] for kind in MIX), entry.repeated, entry.bad]
        samples, *rest = (f"{count:,}" if count else "-" for count in counts)
        table.add_row(_name(entry), samples, share, *rest)
    table.caption = "repeated: asks what an earlier sample asks, of the same media"
    return table


def token_table(figures: Figures) -> "Table | None":
    """Tokens of each entry; None where none were counted."""
    rows = [(entry, entry.tokens) for entry in _rows(figures) if entry.tokens is not None]
    if not rows:
        return None
    bounds = [bound for _, tokens in rows for bound in tokens.histogram]
    columns = ("entry", "tokens", "min", "median", "p95", "max", "histogram", "vision", "supervised", "over limit")
    table = _table("tokens of a sample, vision tokens included", columns)
    for entry, tokens in rows:
        table.add_row(
            _name(entry),
            *(f"{value:,}" for value in (tokens.total, tokens.least, tokens.median, tokens.p95, tokens.most)),
            bars(tokens.histogram, min(bounds), max(bounds)),
            f"{tokens.vision_share:.1%}",
            "-" if entry.held_out else f"{tokens.supervised_share:.1%}",
            f"{tokens.too_long + tokens.too_much_vision:,}" if tokens.too_long + tokens.too_much_vision else "-",
        )
    table.caption = f"histogram: a bar for each doubling, from {min(bounds) // 2 + 1:,} to {max(bounds):,} tokens"
    return table


def bars(histogram: Mapping[int, int], first: int, last: int) -> str:
    """A bar for each power of two from `first` to `last`; a bar that is not empty can be seen."""
    most = max(histogram.values())
    text = ""
    bound = first
    while bound <= last:
        count = histogram.get(bound, 0)
        text += _BARS[max(1, round(count / most * (len(_BARS) - 1)))] if count else _BARS[0]
        bound *= 2
    return text


def _rows(figures: Figures) -> Sequence[EntryFigures]:
    trained = figures.trained if len(figures.trained) == 1 else [*figures.trained, figures.total]
    return [*trained, *figures.held_out]


def _name(entry: EntryFigures) -> str:
    return f"{entry.name}, held out" if entry.held_out else entry.name


def _table(title: str, columns: Sequence[str]) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left", caption_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number and column != "histogram" else "left", no_wrap=not number)
    return table
