"""Devices, number formats, seeds and memory: chosen by the caller, never at import."""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import torch

from fewer.core.errors import CapacityError, ConfigError

logger = logging.getLogger(__name__)

DeviceName = Literal["auto", "cpu", "cuda"]
DtypeName = Literal["auto", "fp32", "bf16", "fp16"]
FullPrecision = Literal["auto", "fp32"]
"""For what computes in fp32 on every device."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is a GPU where there is one. Raises `ConfigError` for a GPU that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is not known; allowed: auto, cpu, cuda, cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r} was asked for, but PyTorch sees no GPU here; try --device cpu")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on a GPU and fp32 on a CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise ConfigError(f"dtype {name!r} is not known; allowed: auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def seeded(seed: int, *stream: int) -> torch.Generator:
    """A CPU generator for `seed`; further integers give independent streams of the same seed.

    Always on the CPU, so that one seed gives one picture on every device. Raises `ConfigError`
    for a seed outside 0 .. 2**63 - 1.
    """
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed {seed} is outside 0 .. 2**63 - 1")
    if not stream:
        return torch.Generator("cpu").manual_seed(seed)
    mixed = np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)[0]
    return torch.Generator("cpu").manual_seed(int(mixed) >> 1)


@contextmanager
def isolated_randomness(seed: int) -> Iterator[None]:
    """Seeds Python, NumPy and torch inside the block and restores their states afterwards.

    For code that draws from the global generators (dropout, third-party augmentation).
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def available_memory(device: torch.device) -> int:
    """Bytes that a new allocation may take: free GPU memory, or free RAM within the container's limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + reusable
    return max(0, min(psutil.virtual_memory().available, _room_of_container(Path("/sys/fs/cgroup"))))


def _room_of_container(folder: Path) -> int:
    """Bytes below the limit of a cgroup (version 2); pages that only mirror files give way when asked."""
    try:
        limit = (folder / "memory.max").read_text("ascii").strip()
        used = int((folder / "memory.current").read_text("ascii"))
        pages = dict(line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines())
    except (OSError, ValueError):  # no container, or one of another kind
        return 2**63
    return 2**63 if limit == "max" else int(limit) - used + int(pages.get("inactive_file", 0))


def require_memory(needed: int, device: torch.device, advice: str) -> None:
    """Raises `CapacityError` when `needed` bytes exceed what is free; `advice` says what to try."""
    free = available_memory(device)
    if needed > free:
        raise CapacityError(
            f"needs about {needed / 2**30:.1f} GiB on {device}, {free / 2**30:.1f} GiB free; {advice}"
        )
