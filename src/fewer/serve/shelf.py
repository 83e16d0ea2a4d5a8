"""Loaded models within a memory budget: the one used longest ago makes room for the one asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fewer.core.device import available_memory

if TYPE_CHECKING:
    from fewer.generate.class_pictures import ClassModel
    from fewer.generate.pipeline import TextToImage

_HEADROOM = 1.25
"""Loading holds a little more than the weights themselves."""


class Shelf:
    """Pipelines by the name under which clients ask for them."""

    def __init__(
        self,
        folders: dict[str, str],
        device: str,
        dtype: str,
        memory: int | None = None,
        spread: Callable[[TextToImage], None] | None = None,
    ) -> None:
        """`memory` is the most that all models may hold, in bytes; by default what the device has free.

        `spread` changes a model that was just loaded: a group of devices cuts it into bands.
        """
        self._spread = spread
        self._folders, self._device, self._dtype, self._memory = folders, device, dtype, memory
        self._loaded: OrderedDict[str, tuple[TextToImage | ClassModel, int]] = OrderedDict()

    def names(self) -> list[str]:
        """Which are loaded, the one used last at the end."""
        return list(self._loaded)

    def pipeline(self, name: str) -> TextToImage:
        """The model, loaded if it is not. Raises `FileError` and `ConfigError` as `TextToImage.load` does."""
        from fewer.compose import open_pipeline

        def opened(folder: str) -> tuple[TextToImage, int]:
            pipe = open_pipeline(folder, device=self._device, dtype=self._dtype).accelerate()
            held = held_bytes(pipe.transformer, pipe.autoencoder, pipe.encoder.model)
            if self._spread is not None:
                self._spread(pipe)
            return pipe, held

        return self._kept(name, opened)

    def class_model(self, name: str) -> ClassModel:
        """One that draws classes; loaded and kept as the others are."""
        from fewer.compose import open_classes
        from fewer.core.device import pick_dtype

        def opened(folder: str) -> tuple[ClassModel, int]:
            place = torch.device(self._device)
            dtype = pick_dtype("fp32" if self._dtype == "auto" else self._dtype, place)
            model = open_classes(Path(folder), place, dtype)
            networks = [one for one in (model.network, model.autoencoder) if one is not None]
            return model, held_bytes(*networks)

        return self._kept(name, opened)

    def _kept(self, name: str, opened: Callable[[str], tuple[Any, int]]) -> Any:
        if name not in self._loaded:
            folder = self._folders.get(name, name)
            self._make_room(_weight_bytes(Path(folder)))
            self._loaded[name] = opened(folder)
        self._loaded.move_to_end(name)
        return self._loaded[name][0]

    def _make_room(self, wanted: int) -> None:
        wanted = int(wanted * _HEADROOM)
        while self._loaded and not self._fits(wanted):
            self._loaded.popitem(last=False)
            _give_back()

    def _fits(self, wanted: int) -> bool:
        if self._memory is not None:
            return sum(held for _, held in self._loaded.values()) + wanted <= self._memory
        return wanted <= available_memory(torch.device(self._device))


def held_bytes(*networks: torch.nn.Module) -> int:
    """Bytes of the weights."""
    tensors = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _weight_bytes(folder: Path) -> int:
    files = folder.rglob("*.safetensors") if folder.is_dir() else [folder] if folder.is_file() else []
    return sum(file.stat().st_size for file in files)


def _give_back() -> None:
    import gc

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
