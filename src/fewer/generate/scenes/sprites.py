"""Sprites: the emoji of the npm packages rendered once to small RGBA pictures.

The packages are read from a `node_modules` folder that `fetch_packages` fills with npm, and only when the
user asks for it. Rendering uses resvg, a Rust renderer without system libraries (extra `build-model`).
"""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from fewer.core.errors import ConfigError, FileError
from fewer.core.files import read_json
from fewer.core.progress import Progress, SilentProgress, track
from fewer.core.tensors import read_tensors, tensor_header, write_tensors
from fewer.generate.scenes.drawing import draw_icons, icon_svg
from fewer.generate.scenes.vocabulary import STYLES

PACKAGES = (
    "@iconify-json/noto@1.2.9",
    "@iconify-json/fluent-emoji-flat@1.2.6",
    "@iconify-json/fluent-emoji@1.2.7",
    "@iconify-json/twemoji@1.2.5",
)


@dataclass(frozen=True, slots=True)
class SpriteSheet:
    """All pictures of some concepts in some styles, straight (not premultiplied) RGBA."""

    concepts: tuple[tuple[str, str], ...]
    """(package name, word) of each concept: ("cat-face", "cat")."""
    styles: tuple[str, ...]
    pixels: UInt8[np.ndarray, "styles concepts side side 4"]

    def words(self) -> tuple[str, ...]:
        """The word of each concept, in order."""
        return tuple(word for _, word in self.concepts)


def fetch_packages(folder: Path) -> Path:
    """Installs the four pinned packages with npm below `folder`; returns its `node_modules`.

    Raises `FileError` (missing) without npm, or when npm fails.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise FileError("npm is not installed; it fetches the emoji packages: install Node.js", missing=True)
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        npm,
        "install",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--prefix",
        str(folder),
        *PACKAGES,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FileError(f"npm could not fetch the emoji packages: {last}", missing=True)
    return folder / "node_modules"


def render_sprites(
    packages: Path,
    concepts: Mapping[str, str],
    styles: Sequence[str],
    side: int,
    progress: Progress | None = None,
) -> SpriteSheet:
    """Renders every concept in every style at side×side pixels.

    Raises `FileError` (missing) for a package that is not there and `ConfigError` for an unknown name.
    """
    sheet = np.zeros((len(styles), len(concepts), side, side, 4), dtype=np.uint8)
    for row, style in enumerate(track(list(styles), progress or SilentProgress(), "sprites")):
        if style not in STYLES:
            raise ConfigError(f"style {style!r} is not known; allowed: {', '.join(STYLES)}")
        icons = read_json(packages / STYLES[style].package / "icons.json", max_bytes=2**28)
        sheet[row] = draw_icons([icon_svg(icons, name, side) for name in concepts], side)
    return SpriteSheet(tuple(concepts.items()), tuple(styles), sheet)


def save_sprites(sheet: SpriteSheet, path: Path) -> None:
    """One safetensors file with the names in its metadata."""
    facts = {
        "concepts": "\n".join(name for name, _ in sheet.concepts),
        "words": "\n".join(sheet.words()),
        "styles": "\n".join(sheet.styles),
    }
    write_tensors(path, {"pixels": torch.from_numpy(sheet.pixels)}, facts)


def load_sprites(path: Path) -> SpriteSheet:
    """Inverse of `save_sprites`. Raises `FileError` for a file that holds no sprites."""
    _, facts = tensor_header(path)
    if not {"concepts", "words", "styles"} <= set(facts):
        raise FileError(f"{path.name!r} holds no sprites; make it with: fewer train sana --preset emoji")
    names, words = facts["concepts"].split("\n"), facts["words"].split("\n")
    pixels = read_tensors(path)["pixels"].numpy()
    styles = tuple(facts["styles"].split("\n"))
    if len(names) != len(words) or pixels.shape[:2] != (len(styles), len(names)) or pixels.shape[-1] != 4:
        raise FileError(f"{path.name!r} names {len(names)} concepts, but its pixels are {pixels.shape}")
    return SpriteSheet(tuple(zip(names, words, strict=True)), styles, pixels)
