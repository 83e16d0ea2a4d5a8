"""The report of a quantization: one HTML file that needs nothing else, readable without scripts."""

import base64
import html
import io
from pathlib import Path

from fewer.core.files import write_bytes
from fewer.quantize.measure import LayerReport

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#222}
table{border-collapse:collapse;width:100%}
td,th{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left;font-family:monospace}
.bar{display:inline-block;height:.7em;background:#c33}
figure{display:inline-block;margin:.5rem;max-width:46%}img{max-width:100%}"""


def write_report(
    path: Path,
    figures: dict[str, object],
    reports: list[LayerReport],
    before: list[tuple[str, object]],
    after: list[tuple[str, object]],
) -> None:
    """Writes the report: figures, pictures side by side at equal seeds, and a line per layer, worst first.

    `before` and `after` are (prompt, Pillow image) pairs in the same order.
    """
    pairs = "".join(
        f"<p>{html.escape(prompt)}</p>{_figure(old, '16 bits')}{_figure(new, str(figures['format']))}"
        for (prompt, old), (_, new) in zip(before, after, strict=True)
    )
    summary = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(str(value))}</td></tr>"
        for name, value in figures.items()
    )
    largest = max((_cost(report) for report in reports), default=1.0) or 1.0
    lines = "".join(_line(report, largest) for report in sorted(reports, key=_cost, reverse=True))
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Quantization report</title>'
        f"<style>{_STYLE}</style><h1>Quantization report</h1><table>{summary}</table>"
        f"{'<h2>Pictures at the same seed</h2>' + pairs if pairs else ''}"
        f"<h2>Layers, worst first</h2><p>Output error is ||Y - Y'|| / ||Y|| on calibration rows; "
        f"where a layer was not calibrated, the weight's own error stands.</p><table>"
        f"<tr><th>layer</th><th>shape</th><th>format</th>"
        f"<th>output error</th><th>weight error</th><th>alpha, beta</th><th>rounds</th><th>size</th>"
        f"<th>seconds</th><th></th></tr>{lines}</table></html>"
    )
    write_bytes(path, page.encode())


def _cost(report: LayerReport) -> float:
    return report.weight_error if report.error is None else report.error


def _line(report: LayerReport, largest: float) -> str:
    error = "" if report.error is None else f"{report.error:.4f}"
    width = round(8 * _cost(report) / largest, 2)
    cells = [
        html.escape(report.name), f"{report.shape[0]} × {report.shape[1]}", report.method, error,
        f"{report.weight_error:.4f}", f"{report.alpha:.2f}, {report.beta:.2f}", str(report.rounds),
        f"{report.bytes_after / max(report.bytes_before, 1):.2f}", f"{report.seconds:.1f}",
        f'<span class="bar" style="width:{width}em"></span>',
    ]  # fmt: skip
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _figure(picture: object, caption: str) -> str:
    stream = io.BytesIO()
    picture.save(stream, "PNG")  # pyright: ignore
    data = base64.b64encode(stream.getvalue()).decode()
    text = html.escape(caption)
    image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"
