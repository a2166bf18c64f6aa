"""Loss curves of several runs in one picture, and their scores where they were judged while they trained."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from vlmft.sweeps.runs import RunRecord, differing, label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST_LABEL = 60
_MOST_POINTS = 2000
"""A curve's points: more than a picture has columns only make the file large."""


def loss_figure(records: Sequence[RunRecord]) -> "Figure":
    """Smoothed loss by step, the logged one faint behind it; a second panel for the scores of several moments."""
    from matplotlib.figure import Figure  # not pyplot, which picks a display and keeps every figure

    metrics = list(dict.fromkeys(m for record in records for m, points in record.evals.items() if len(points) > 1))
    figure = Figure(figsize=(8 * (1 + len(metrics[:1])), 5), layout="constrained")
    panels: Any = figure.subplots(1, 1 + len(metrics[:1]), squeeze=False)[0]
    keys = differing(records)
    for number, record in enumerate(records):
        chose = label(record, keys)
        text = f"{record.name}: {chose}" if chose else record.name
        text = text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…"
        # Ten colours, then the same with other dashes.
        style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":", "-.")[number // 10 % 4]}
        if record.losses:
            panels[0].plot(*_points(record.losses), alpha=0.2, linewidth=0.8, **style)
            panels[0].plot(*_points(record.smoothed), label=_literal(text), marker=_mark(record.smoothed), **style)
        if metrics and record.evals.get(metrics[0]):
            points = record.evals[metrics[0]]
            panels[1].plot(*_points(points), label=_literal(text), marker="o", markersize=3, **style)
    for panel, title in zip(panels, ["training loss", *metrics[:1]], strict=True):
        panel.set(xlabel="optimiser step", ylabel=_literal(title))
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize="small")
        else:
            panel.text(0.5, 0.5, "no run has logged a loss", ha="center", transform=panel.transAxes)
    return figure


def draw(figure: "Figure", kind: Literal["png", "svg"]) -> bytes:
    """The picture's bytes; the same figure gives the same bytes."""
    import matplotlib

    stream = io.BytesIO()
    # Text as text: a picture a tenth of the size, that can be searched.
    with matplotlib.rc_context({"svg.hashsalt": "vlmft", "svg.fonttype": "none"}):
        figure.savefig(stream, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return stream.getvalue()


def _points(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    stride = max(1, len(points) // _MOST_POINTS)
    kept = [*points[:-1:stride], points[-1]]
    return [step for step, _ in kept], [value for _, value in kept]


def _mark(points: Sequence[tuple[int, float]]) -> str:
    return "o" if len(points) == 1 else ""  # a line through one point is none


def _literal(text: str) -> str:
    """Text without mathtext: `$` would begin a formula, and a leading `_` hide a label."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
