"""Runs side by side as one HTML file that needs nothing else."""

from collections.abc import Sequence
from html import escape

from vlmft.sweeps.curves import draw, loss_figure
from vlmft.sweeps.runs import RunRecord, best, chosen, common_level, differing, fastest
from vlmft.sweeps.table import columns, verdict
from vlmft.webpage import data_uri, document

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-size: 14px } th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd }
th { text-align: left } td { vertical-align: top } td.number { text-align: right; font-variant-numeric: tabular-nums }
td.differs { background: #fff3c4 } tr.failed td { color: #a11 } tr.best td { font-weight: 600 }
.scroll { overflow-x: auto } img { max-width: 100% } pre { white-space: pre-wrap; color: #a11 } code { font-size: 13px }
"""


def html_page(records: Sequence[RunRecord], title: str, loss_below: float | None = None) -> str:
    """Table, curves, and each run's overrides, those that differ highlighted; reasons in full."""
    level = common_level(records) if loss_below is None else loss_below
    picture = data_uri(draw(loss_figure(records), "svg"), "image/svg+xml")
    failed = [record for record in records if record.reason]
    reasons = "".join(f"<h3>{escape(r.name)}</h3><pre>{escape(r.reason)}</pre>" for r in failed)
    body = (
        f"<h1>{escape(title)}</h1>\n"
        + "".join(f"<p>{escape(line)}</p>\n" for line in verdict(records, level))
        + f'<div class="scroll">{_table(records, level)}</div>\n'
        f'<p><img alt="training loss of each run by optimiser step" src="{picture}"></p>\n'
        f"<h2>What each run chose</h2>\n{_choices(records)}\n"
        + (f"<h2>Why runs ended</h2>\n{reasons}\n" if reasons else "")
    )
    return document(title, _STYLE, body, "vlmft.report")


def _table(records: Sequence[RunRecord], level: float | None) -> str:
    """The screen's table, the overrides as a column for each key that differs."""
    keys = differing(records)
    heads, rows = columns(records, level)
    heads = [heads[0] or "run", *keys, *heads[2:]]
    ahead = {id(record) for record in (best(records), fastest(records, level)) if record and len(records) > 1}
    body = []
    for record, row in zip(records, rows, strict=True):
        choice = chosen(record.overrides)
        cells = [f"<td>{escape(row[0])}</td>"]
        cells += [f'<td class="differs"><code>{escape(choice.get(key, "-"))}</code></td>' for key in keys]
        cells += [f"<td>{escape(row[2])}</td>", *(f'<td class="number">{escape(cell)}</td>' for cell in row[3:])]
        kind = "failed" if record.reason else "best" if id(record) in ahead else ""
        body.append(f'<tr class="{kind}">{"".join(cells)}</tr>')
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _choices(records: Sequence[RunRecord]) -> str:
    keys = differing(records) if len(records) > 1 else []
    lines = []
    for record in records:
        words = [
            f"<mark>{escape(word)}</mark>" if word.partition("=")[0].lstrip("+") in keys else escape(word)
            for word in record.overrides
        ]
        lines.append(
            f"<li>{escape(record.name)}: <code>{' '.join(words) or 'nothing'}</code><br>"
            f"{escape(str(record.folder))}</li>"
        )
    return f"<ul>{''.join(lines)}</ul>"
