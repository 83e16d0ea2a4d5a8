"""Small plots as inline SVG: lines over the run, a reliability diagram, a confusion matrix. No script, no
network, no library; colours follow the reader's light or dark setting through CSS variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 420, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 12, 30
_COLOURS = ("#0b6bcb", "#c41c1c", "#1f7a1f", "#9a5b13")


def line_plot(
    x: Sequence[float],
    lines: Mapping[str, Sequence[float | None]],
    what: str,
    *,
    low: float | None = None,
    high: float | None = None,
) -> str:
    """One polyline a name; None breaks a line. The axes fit the values unless `low`, `high` are given."""
    values = [v for line in lines.values() for v in line if v is not None]
    if not values or not x:
        return f"<p>{escape(what)}: nothing to show.</p>"
    low = min(values) if low is None else low
    high = max(values) if high is None else high
    if high <= low:
        high = low + 1.0
    left, right = min(x), max(x) if max(x) > min(x) else min(x) + 1

    def place(a: float, b: float) -> tuple[float, float]:
        across = _LEFT + (a - left) / (right - left) * (WIDTH - _LEFT - _RIGHT)
        up = HEIGHT - _BOTTOM - (b - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)
        return round(across, 1), round(up, 1)

    parts = [_frame(what, left, right, low, high)]
    for number, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        for run in _runs(x, line):
            points = " ".join(f"{a},{b}" for a, b in (place(*point) for point in run))
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(
            f'<text x="{_LEFT + 8}" y="{_TOP + 14 + 15 * number}" fill="{colour}">{escape(name)}</text>'
        )
    return _svg("".join(parts), what)


def reliability_plot(
    confidences: Sequence[float], accuracies: Sequence[float], shares: Sequence[float]
) -> str:
    """Accuracy against confidence; calibrated means on the diagonal. Dot area: share of pictures."""
    parts = [_frame("accuracy against confidence", 0.0, 1.0, 0.0, 1.0)]
    across, up = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    parts.append(
        f'<line x1="{_LEFT}" y1="{HEIGHT - _BOTTOM}" x2="{WIDTH - _RIGHT}" y2="{_TOP}" class="axis" '
        'stroke-dasharray="4 4"/>'
    )
    for confidence, accuracy, share in zip(confidences, accuracies, shares, strict=True):
        if share > 0:
            parts.append(
                f'<circle cx="{_LEFT + confidence * across:.1f}" cy="{HEIGHT - _BOTTOM - accuracy * up:.1f}" '
                f'r="{3 + 14 * share**0.5:.1f}" fill="{_COLOURS[0]}" fill-opacity="0.6"/>'
            )
    return _svg("".join(parts), "reliability diagram")


def confusion_table(confusion: Sequence[Sequence[int]], class_names: Sequence[str]) -> str:
    """An HTML table, rows: true class, columns: predicted; shaded by the share of the row."""
    head = "".join(f"<th>{escape(name)}</th>" for name in class_names)
    rows = []
    for name, counts in zip(class_names, confusion, strict=True):
        total = max(1, sum(counts))
        cells = "".join(
            f'<td style="background:rgba(11,107,203,{count / total:.2f})">{count}</td>' for count in counts
        )
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    return f'<table class="confusion"><tr><th>true \\ predicted</th>{head}</tr>{"".join(rows)}</table>'


def _runs(x: Sequence[float], line: Sequence[float | None]) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for a, b in zip(x, line, strict=True):
        if b is None:
            runs.append([])
        else:
            runs[-1].append((a, b))
    return [run for run in runs if run]


def _frame(what: str, left: float, right: float, low: float, high: float) -> str:
    base = HEIGHT - _BOTTOM
    return (
        f'<line x1="{_LEFT}" y1="{base}" x2="{WIDTH - _RIGHT}" y2="{base}" class="axis"/>'
        f'<line x1="{_LEFT}" y1="{_TOP}" x2="{_LEFT}" y2="{base}" class="axis"/>'
        f'<text x="{_LEFT - 4}" y="{base}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{_LEFT - 4}" y="{_TOP + 10}" text-anchor="end">{high:.3g}</text>'
        f'<text x="{_LEFT}" y="{HEIGHT - 8}">{left:.4g}</text>'
        f'<text x="{WIDTH - _RIGHT}" y="{HEIGHT - 8}" text-anchor="end">{right:.4g}</text>'
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(what)}</text>'
    )


def _svg(content: str, what: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(what)}">{content}</svg>'
