"""Vector emoji to small RGBA pictures, on all cores: the renderer holds Python's lock, so processes it is.

Imports no torch, so that a worker starts in a fraction of a second.
"""

import io
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fewer.core.errors import ConfigError

_SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    'viewBox="{left} {top} {width} {height}" width="{side}" height="{side}">{body}</svg>'
)
_WORTH_PROCESSES = 64


def icon_svg(icons: Mapping[str, object], name: str, side: int) -> str:
    """The SVG of an icon of an Iconify set. Raises `ConfigError` for an unknown name."""
    known = icons["icons"]
    if name not in known:  # type: ignore[operator]
        raise ConfigError(f"the emoji {name!r} is not in {icons.get('prefix')!r}; look at its icons.json")
    icon = known[name]  # type: ignore[index]
    return _SVG.format(
        left=icon.get("left", 0),
        top=icon.get("top", 0),
        width=icon.get("width", icons.get("width", 16)),
        height=icon.get("height", icons.get("height", 16)),
        side=side,
        body=icon["body"],
    )


def draw_icons(svgs: Sequence[str], side: int) -> UInt8[np.ndarray, "icons side side 4"]:
    """All icons, each cut to its drawing and centred in a square of `side` pixels."""
    draw = partial(draw_icon, side=side)
    workers = min(os.cpu_count() or 1, 16)
    if len(svgs) < _WORTH_PROCESSES or workers < 3:
        return np.stack([draw(svg) for svg in svgs])
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as processes:
        return np.stack(list(processes.map(draw, svgs, chunksize=4)))


def draw_icon(svg: str, side: int) -> UInt8[np.ndarray, "side side 4"]:
    """One icon. Sets differ in their margins: without them size words mean the same in all."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, skip_system_fonts=True)
    picture = Image.open(io.BytesIO(bytes(png)), formats=("PNG",)).convert("RGBA")
    box = picture.getchannel("A").point(lambda value: 255 if value > 8 else 0).getbbox()  # pyright: ignore
    return _centred(picture.crop(box) if box else picture, side)


def _centred(picture: Image.Image, side: int) -> UInt8[np.ndarray, "side side 4"]:
    scale = side / max(picture.size)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    canvas = np.zeros((side, side, 4), dtype=np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = np.asarray(resize_rgba(picture, width, height))
    return canvas


def resize_rgba(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Resizes with premultiplied colours, so that hidden colours of transparent pixels do not bleed in."""
    return picture.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
