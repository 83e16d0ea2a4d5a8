"""`fewer info`: what is installed, which devices there are, which rooms and models were found."""

import importlib.util
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field

from fewer.core.device import DeviceName, DtypeName
from fewer.core.errors import FileError
from fewer.core.progress import Progress
from fewer.core.stored_form import stored_form

_PACKAGES = ("fewer", "torch", "triton", "numpy", "transformers", "diffusers", "safetensors", "pillow")
_EXTRAS = {
    "stitch": ("cv2", "av", "pydicom", "scipy", "threadpoolctl"),
    "learn": ("scipy",),
    "recommend": ("pyarrow", "hnswlib", "faiss", "yaml", "onnx", "onnxscript", "onnxruntime"),
    "serve": ("fastapi", "uvicorn", "websockets"),
    "ray": ("ray",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class InfoRequest:
    """What this installation can do."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    models: Path | None = None
    """A folder to look for models in, besides the built-in one."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Accepted as by every verb, as are the next two; nothing is drawn or computed here."""
    device: DeviceName = "auto"
    """Accepted as by every verb."""
    dtype: DtypeName = "auto"
    """Accepted as by every verb."""


def info_command(request: InfoRequest, progress: Progress) -> dict[str, object]:
    """Versions, devices, extras, kernels and models, as plain data."""
    import torch

    from fewer.core.device import available_memory

    devices: list[dict[str, object]] = [
        {
            "name": "cpu",
            "threads": torch.get_num_threads(),
            "free_gib": round(available_memory(torch.device("cpu")) / 2**30, 1),
        }
    ]
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        devices.append(
            {
                "name": torch.cuda.get_device_name(device),
                "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
                "free_gib": round(available_memory(device) / 2**30, 1),
            }
        )
    return {
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "devices": devices,
        "kernels": "triton"
        if torch.cuda.is_available() and importlib.util.find_spec("triton")
        else "reference",
        "extras": {name: all(map(importlib.util.find_spec, needs)) for name, needs in _EXTRAS.items()},
        "models": list(models := _models(request.models)),
        "stored_as": {name: stored_form(folder) for name, folder in models.items()},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _models(folder: Path | None) -> dict[str, Path]:
    """Name -> folder."""
    built_in = Path(__file__).parents[1] / "generate" / "default_model"
    found = {"default": built_in} if (built_in / "model_index.json").exists() else {}
    if folder is not None:
        if not folder.is_dir():
            raise FileError(f"--models {folder.name[:80]!r} is no folder; check the path", missing=True)
        names = ("model_index.json", "config.json")
        theirs = {p.name: p for p in folder.iterdir() if any((p / name).exists() for name in names)}
        found |= {name: theirs[name] for name in sorted(theirs)}
    return found
