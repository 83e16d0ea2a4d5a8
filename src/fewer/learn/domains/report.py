"""The report of a sweep: one HTML page that needs nothing else; the verdict first, then table and layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from fewer.learn.domains.tables import Difference, Table

_STYLE = """
:root{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}
body{max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse}td,th{padding:.2rem .6rem;text-align:right;border:1px solid #8884}
th:first-child{text-align:left}.verdict{padding:.6rem 1rem;border-left:4px solid #0b6bcb}
svg{width:100%;max-width:40rem;font-size:12px}svg text{fill:currentColor}
"""


def report_page(
    name: str,
    table: Table,
    verdicts: Mapping[str, Difference],
    reference: str,
    layers: Mapping[str, Sequence[Mapping]],
    facts: Mapping[str, object],
    notes: Sequence[str] = (),
) -> str:
    """The page as text. `verdicts`: method -> its paired difference to `reference`; `layers`: method -> the
    layer reports of one run; `facts`: what was run, for people."""
    parts = [f"<h1>Invariant learning on {escape(name)}</h1>"]
    for method, difference in verdicts.items():
        parts.append(f'<p class="verdict">{escape(difference.sentence(method, reference))}</p>')
    parts += [f"<p>Note: {escape(note)}.</p>" for note in notes]
    parts.append("<h2>Accuracy on the domain that was held out, %</h2>" + _accuracies(table))
    if verdicts:
        parts.append(f"<h2>Paired differences to {escape(reference)}, points</h2>" + _intervals(verdicts))
    for method, rows in layers.items():
        if rows:
            parts.append(f"<h2>Which layers lost what: {escape(method)}</h2>" + _layers(rows))
    parts.append("<h2>What was run</h2>" + _facts(facts))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>fewer: invariant learning</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>"
    )


def _accuracies(table: Table) -> str:
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    head = "<tr><th>method</th>" + "".join(f"<th>{escape(c)}</th>" for c in columns) + "</tr>"
    rows = []
    for method, row in table.items():
        cells = "".join(f"<td>{escape(row[c].text()) if c in row else ''}</td>" for c in columns)
        rows.append(f"<tr><th>{escape(method)}</th>{cells}</tr>")
    return f"<table>{head}{''.join(rows)}</table><p>Mean over seeds ± standard error.</p>"


def _intervals(verdicts: Mapping[str, Difference]) -> str:
    """A dot with its 95 % interval for each method, on one axis through zero."""
    ends = [v for d in verdicts.values() for v in (d.low, d.high, d.mean) if v is not None]
    reach = max(1.0, *(abs(value) for value in ends))
    lines = []
    for number, (method, d) in enumerate(verdicts.items()):
        y = 20 + 24 * number
        low, high = (_place(d.mean if v is None else v, reach) for v in (d.low, d.high))
        lines.append(
            f'<text x="0" y="{y + 4}">{escape(method)}</text>'
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke="#0b6bcb" stroke-width="3"/>'
            f'<circle cx="{_place(d.mean, reach):.1f}" cy="{y}" r="5" fill="#0b6bcb"/>'
        )
    height = 24 * len(verdicts) + 30
    axis = f'<line x1="400" x2="400" y1="4" y2="{height - 18}" stroke="currentColor" stroke-opacity=".5"/>'
    labels = (
        f'<text x="400" y="{height - 4}" text-anchor="middle">0</text>'
        f'<text x="590" y="{height - 4}" text-anchor="end">{reach:+.1f}</text>'
        f'<text x="210" y="{height - 4}">{-reach:+.1f}</text>'
    )
    return (
        f'<svg viewBox="0 0 600 {height}" role="img" aria-label="paired differences with intervals">'
        f"{axis}{''.join(lines)}{labels}</svg>"
    )


def _place(value: float, reach: float) -> float:
    return 400 + 190 * value / reach


def _layers(rows: Sequence[Mapping]) -> str:
    head = (
        "<tr><th>layer</th><th>weights</th><th>kept</th><th>changed since the first mask</th>"
        "<th>spread between domains, kept</th><th>dropped</th></tr>"
    )
    body = "".join(
        f"<tr><th>{escape(str(row['name']))}</th><td>{row['weights']:,}</td>"
        f"<td>{row['kept'] / row['weights']:.1%}</td><td>{row['changed']:.1%}</td>"
        f"<td>{_number(row['spread_kept'])}</td><td>{_number(row['spread_dropped'])}</td></tr>"
        for row in rows
    )
    return (
        f"<table>{head}{body}</table><p>Spread: how far the domains' gradients differ, over their mean. "
        "Above 1 among the dropped: the mask leaves out what reacts to the domain.</p>"
    )


def _number(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else "–"


def _facts(facts: Mapping[str, object]) -> str:
    rows = "".join(f"<tr><th>{escape(str(k))}</th><td>{escape(str(v))}</td></tr>" for k, v in facts.items())
    return f"<table>{rows}</table>"
