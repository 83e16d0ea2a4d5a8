"""A chain of kernels on one stream, in which the next one starts up while the last one finishes.

Hopper can launch a kernel before the one ahead of it has ended (programmatic dependent launch): its programs
are placed as processors fall free, and wait in `follow` until everything that was written before is there.
That hides a launch and a start-up, about a microsecond each, behind work. A kernel launched with the
keywords of `chained` must call `follow` before it reads or writes memory.
"""

import functools
import os

import torch
import triton
import triton.language as tl

try:
    from triton.language.extra.cuda import gdc_wait
except ImportError:  # a Triton that cannot do it
    gdc_wait = None


@triton.jit
def follow(CHAIN: tl.constexpr):
    """Waits for the kernels before. Nobody calls the next one early: its programs would take up room here."""
    if CHAIN:
        gdc_wait()  # pyright: ignore[reportOptionalCall]


def chained(device: torch.device) -> dict[str, bool]:
    """Keywords of a launch: whether the kernel follows, and how it is launched then."""
    return {"CHAIN": True, "launch_pdl": True} if _can_chain(device) else {"CHAIN": False}


@functools.cache
def _can_chain(device: torch.device) -> bool:
    if device.type != "cuda" or gdc_wait is None or os.environ.get("FEWER_CHAINED") != "1":
        return False
    if torch.cuda.get_device_capability(device)[0] < 9:
        return False
    from triton.backends.nvidia.compiler import CUDAOptions

    return hasattr(CUDAOptions, "launch_pdl")
