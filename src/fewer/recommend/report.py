"""The report page of a training: one HTML file without scripts or network: "is it any good?"."""

import html
from collections.abc import Sequence
from pathlib import Path

from fewer.core.files import write_bytes
from fewer.recommend.recommender import Recommender

COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#4b5563")
STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;
color:#1f2937}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .8rem;border-bottom:1px solid #d1d5db;
text-align:right}
td:first-child,th:first-child{text-align:left}tr.own{font-weight:600}svg{max-width:100%}.note{color:#4b5563}"""


def write_report(recommender: Recommender, path: Path) -> Path:
    """Writes the page and returns its path. Raises `FileError`."""
    write_bytes(path, report_page(recommender).encode())
    return path


def report_page(recommender: Recommender) -> str:
    """The page as text; every word that came from data is escaped."""
    facts = recommender.report
    parts = [
        f"<h1>{_text(recommender.method)}: {facts.get('users', 0):,} users, "
        f"{recommender.item_count:,} items, {facts.get('interactions', 0):,} interactions</h1>",
        _metrics(recommender),
        _search(recommender),
        _training(recommender),
        "<h2>Data</h2><ul>"
        + "".join(f"<li>{_text(note)}</li>" for note in _list(facts.get("notes")))
        + "</ul>",
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        f"<title>Recommender report</title><style>{STYLE}</style><body>{''.join(parts)}</body></html>"
    )


def _metrics(recommender: Recommender) -> str:
    table = recommender.report.get("metrics")
    if not isinstance(table, dict) or not table:
        return "<p class=note>Learned from everything: there were no test targets to measure on.</p>"
    names = [name for name in next(iter(table.values())) if name not in ("users", "mean_rank")]
    head = "".join(f"<th>{_text(name.replace('_at_', '@').upper())}</th>" for name in names)
    rows = "".join(
        f"<tr{' class=own' if method == recommender.method else ''}><td>{_text(method)}</td>"
        + "".join(f"<td>{row[name]:.4f}</td>" for name in names)
        + "</tr>"
        for method, row in table.items()
    )
    users = next(iter(table.values()))["users"]
    return (
        f"<h2>Figures</h2><table><tr><th>model</th>{head}</tr>{rows}</table>"
        f"<p class=note>Full ranking over all {recommender.item_count:,} items, {users:,} users, "
        f"split {_text(recommender.report.get('split', ''))}, seen items not excluded. "
        "Ties count as their expectation.</p>"
    )


def _search(recommender: Recommender) -> str:
    search = recommender.report.get("search")
    if not isinstance(search, dict) or not search.get("path"):
        return ""
    lines = list(zip(*search["path"], strict=True))
    names = [f"n = {n}" for n in search["candidates"]]
    tables = [
        _lengths("Close lengths, tried out", "epochs", search.get("trials"), search["length"]),
        _lengths("Every length trained alone", None, search.get("grid"), search["length"]),
    ]
    return (
        f"<h2>Short-term length: {search['length']}</h2>"
        + line_chart(lines, names, "epoch of the search", "probability")
        + "".join(tables)
    )


def _lengths(title: str, more: str | None, rows: object, chosen: int) -> str:
    """Fixed lengths and their validation figures, the chosen one in bold."""
    if not _list(rows):
        return ""
    body = "".join(
        f"<tr{' class=own' if row['length'] == chosen else ''}><td>{row['length']}</td>"
        + (f"<td>{row[more]}</td>" if more else "")
        + f"<td>{row['ndcg_at_10']:.4f}</td></tr>"
        for row in rows  # pyright: ignore
    )
    names = ["short-term length", *([more] if more else []), "validation NDCG@10"]
    head = "".join(f"<th>{name}</th>" for name in names)
    return f"<h3>{title}</h3><table><tr>{head}</tr>{body}</table>"


def _training(recommender: Recommender) -> str:
    training = recommender.report.get("training")
    path = training.get("path") if isinstance(training, dict) else None
    if not path or "ndcg_at_10" not in path[0]:
        return ""
    curve = line_chart(
        [[entry["ndcg_at_10"] for entry in path]], [recommender.method], "epoch", "validation NDCG@10"
    )
    return f"<h2>Training</h2>{curve}<p class=note>Best epoch: {training['best_epoch']}.</p>"  # pyright: ignore


def line_chart(lines: Sequence[Sequence[float]], names: Sequence[str], x_name: str, y_name: str) -> str:
    """An SVG with one line per series and its name at the end; the y axis starts at 0."""
    width, height, left, bottom, right = 640, 260, 56, 36, 90
    top = max((value for line in lines for value in line), default=1.0) or 1.0
    steps = max(len(line) for line in lines)
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{_text(y_name)} by {_text(x_name)}" '
        'font-size="12" font-family="sans-serif">'
    ]
    for share in (0, 0.5, 1):
        y = 12 + (1 - share) * (height - bottom - 12)
        parts.append(
            f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e7eb"/>'
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{share * top:.3g}</text>'
        )
    for number, (line, name) in enumerate(zip(lines, names, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        places = [
            (
                left + (width - left - right) * (i / max(steps - 1, 1)),
                12 + (1 - value / top) * (height - bottom - 12),
            )
            for i, value in enumerate(line)
        ]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        x, y = places[-1]
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
            f'<text x="{x + 7:.1f}" y="{y + 4:.1f}" fill="{colour}">{_text(name)}</text>'
        )
    parts.append(
        f'<text x="{left}" y="{height - 8}">{_text(x_name)} 1 to {steps}; {_text(y_name)}</text></svg>'
    )
    return "".join(parts)


def _text(value: object) -> str:
    return html.escape(str(value))


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []
