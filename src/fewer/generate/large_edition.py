"""The large edition of a model: pictures of twice its side from as many latents, in several shapes.

On disk it is `adapters/large` of the model's folder: one stage more for the autoencoder, an adapter (LoRA)
for grids that are not square, and the sizes that were trained. It is taken where a larger picture is asked
for than the model draws by itself; another size is drawn at the nearest of its shapes and resized.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from pydantic import ConfigDict, Field

from fewer.core.config import validate
from fewer.core.errors import ConfigError
from fewer.core.files import read_json, write_json
from fewer.core.tensors import read_tensors, write_tensors
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.autoencoder.extended import extended, extended_config, load_own, own_tensors
from fewer.generate.compact import compact, expand

FOLDER = Path("adapters") / "large"
WEIGHTS = "pytorch_lora_weights.safetensors"
_FILE, _STAGE = "large.json", "autoencoder.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class LargeEdition:
    """The content of large.json, and where the edition lies."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    sizes: Annotated[tuple[tuple[int, int], ...], Field(min_length=1, max_length=1000)]
    """(height, width) in pixels of every shape that was trained."""
    width: Annotated[int, Field(ge=4, le=4096)] = 64
    """Of the autoencoder's new stage."""
    folder: Path | None = None
    """Not written."""

    def check(self, unit: int) -> "LargeEdition":
        """Returns itself. Raises `ConfigError` for a size that is no multiple of `unit`."""
        for height, width in self.sizes:
            if min(height, width) < unit or height % unit or width % unit:
                raise ConfigError(f"{_FILE}: {height}x{width} must be multiples of {unit}")
        return self

    def nearest(self, height: int, width: int) -> tuple[int, int]:
        """The trained (height, width) whose shape is nearest to what is asked for."""
        return min(self.sizes, key=lambda size: abs(size[0] / size[1] - height / width))

    @property
    def adapter(self) -> Path:
        """File of the adapter for grids that are not square."""
        assert self.folder is not None
        return self.folder / WEIGHTS

    def autoencoder(self, base: DCAutoencoder, *, accelerated: bool = False) -> DCAutoencoder:
        """The model's autoencoder with one stage more; everything else is shared with `base`.

        `accelerated` gives its decoder to the engine, as `TextToImage.accelerate` does with the small one.
        """
        assert self.folder is not None
        larger = extended(base, extended_config(base.config, self.width))
        larger = load_own(larger, expand(read_tensors(self.folder / _STAGE), torch.float32)).eval()
        if accelerated:
            from fewer.generate.engine import accelerate
            from fewer.generate.engine.trust import trusted

            return trusted(larger, accelerate(larger))
        on_cpu = next(base.parameters()).device.type == "cpu"
        return larger.to(memory_format=torch.channels_last) if on_cpu else larger


def open_large(model: Path, unit: int) -> LargeEdition | None:
    """The large edition of a model folder, if it has one. Raises `FileError`, `ConfigError` for damage."""
    folder = model / FOLDER
    if not (folder / _FILE).is_file():
        return None
    found = validate(LargeEdition, read_json(folder / _FILE)).check(unit)
    return replace(found, folder=folder)


def write_large(model: Path, settings: LargeEdition, autoencoder: DCAutoencoder) -> Path:
    """Writes settings and the new stage (a byte a weight); returns the folder, where the adapter belongs."""
    facts = asdict(settings)
    del facts["folder"]
    write_json(model / FOLDER / _FILE, facts)
    write_tensors(model / FOLDER / _STAGE, compact(own_tensors(autoencoder)), {"format": "pt"})
    return model / FOLDER
