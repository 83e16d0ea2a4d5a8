"""One self-contained HTML page: the pictures, the figures, the datasheet. No script, nothing is fetched."""

from __future__ import annotations

import base64
from dataclasses import asdict
from html import escape

import torch
from jaxtyping import UInt8
from torch import Tensor

from fewer.learn.distillation.datasheet import Datasheet
from fewer.learn.distillation.distilled_set import DistilledSet, png_bytes

MOST_SHOWN = 50
"""Pictures of a class on the page."""

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;
color:#1b1f24;background:#fff}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2rem}
figure{margin:0 0 1rem;display:flex;gap:1rem;align-items:flex-start}figcaption{width:9rem;flex:none;
font-weight:600}
.strip{display:flex;flex-wrap:wrap;gap:4px}.strip img{width:64px;height:64px;
image-rendering:pixelated;background:#eee}
table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top;
border-bottom:1px solid #ddd;overflow-wrap:anywhere}.warning{border-left:4px solid #b35900;
padding:.3rem .8rem;background:#fff5e8}
@media(prefers-color-scheme:dark){body{background:#14171a;color:#e6e6e6}td,th{border-color:#333}
.warning{background:#2d2216}.strip img{background:#222}}
"""


def to_html(distilled: DistilledSet) -> str:
    """The page as text, safe whatever the class names or the datasheet say."""
    sheet = distilled.datasheet
    title = escape(sheet.title or "Distilled set")
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">",
        f"<title>{title}</title><style>{_STYLE}</style></head><body><main><h1>{title}</h1>",
        f"<p>{len(distilled)} pictures of {sheet.image_size[0]} × {sheet.image_size[1]} pixels, "
        f"method {escape(sheet.method)}, made {escape(sheet.created)}.</p>",
        *[f'<p class="warning">{escape(text)}</p>' for text in sheet.warnings],
        "<h2>Pictures</h2>",
        *_strips(distilled),
        _tables(sheet),
        "</main></body></html>",
    ]
    return "\n".join(parts)


def picture_source(picture: UInt8[Tensor, "height width channels"]) -> str:
    """A picture as a `data:` address."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(picture)).decode()


def _strips(distilled: DistilledSet) -> list[str]:
    strips = []
    pictures = distilled.pixels().permute(0, 2, 3, 1).contiguous()
    for label, name in enumerate(distilled.datasheet.class_names):
        rows = torch.nonzero(distilled.labels == label).flatten().tolist()
        shown = [
            f'<img alt="{escape(name)}, picture {row}" src="{picture_source(pictures[row])}">'
            for row in rows[:MOST_SHOWN]
        ]
        more = f"<span>and {len(rows) - MOST_SHOWN} more</span>" if len(rows) > MOST_SHOWN else ""
        caption = f"<figcaption>{escape(name)}</figcaption>"
        strips.append(f'<figure>{caption}<div class="strip">{"".join(shown)}{more}</div></figure>')
    return strips


def _tables(sheet: Datasheet) -> str:
    sections = [
        ("Figures", sheet.metrics),
        ("Other networks", sheet.cross_architecture),
        ("Privacy", sheet.privacy),
        ("Recipe", asdict(sheet.recipe)),
        ("Settings", sheet.method_config),
        *[(f"Source {number}", asdict(source)) for number, source in enumerate(sheet.sources, start=1)],
        ("Use", {"licence": sheet.licence or "not stated", "intended use": sheet.intended_use}),
    ]
    return "".join(_table(title, facts) for title, facts in sections if facts)


def _table(title: str, facts: dict[str, object]) -> str:
    rows = "".join(
        f"<tr><th scope=row>{escape(_words(name))}</th><td>{escape(_readable(value))}</td></tr>"
        for name, value in facts.items()
        if value not in ("", None, ())
    )
    return f"<h2>{escape(title)}</h2><table>{rows}</table>"


def _words(name: object) -> str:
    return str(name).replace("_", " ")


def _readable(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_readable(entry)}" for name, entry in value.items() if entry is not None)
    if isinstance(value, (list, tuple)):
        return ", ".join(_readable(entry) for entry in value)
    return str(value)
