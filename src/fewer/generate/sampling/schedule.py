"""Noise levels of a flow model: pure functions of the number of steps and the shift.

Level s mixes (1 - s) data with s noise. A shift f moves levels towards noise, which larger images need:
s' = f s / (1 + (f - 1) s), an addition of ln f in logit space (arXiv 2410.10629, section 3.2).
"""

import math
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fewer.core.errors import ConfigError

TRAINING_LEVELS = 1000

Levels = TypeVar("Levels", Tensor, np.ndarray, float)


def shift_levels(levels: Levels, shift: float) -> Levels:
    """Shifted noise levels; `shift=1` changes nothing."""
    return shift * levels / (1 + (shift - 1) * levels)


def flow_dpm_levels(steps: int, shift: float) -> Float64[np.ndarray, " levels"]:
    """`steps + 1` falling levels of Flow-DPM-Solver, the last one zero."""
    _check(steps, shift)
    rising = 1 - np.linspace(1, 1 / TRAINING_LEVELS, steps + 1)
    falling = shift_levels(rising, shift)[::-1]
    return np.append(falling[:-1], 0.0)


def flow_euler_levels(steps: int, shift: float) -> Float64[np.ndarray, " levels"]:
    """`steps + 1` falling levels of diffusers' flow Euler scheduler, the last one zero.

    They start at 1, and their smallest level before zero has been shifted twice.
    """
    _check(steps, shift)
    smallest = shift_levels(1 / TRAINING_LEVELS, shift)
    return np.append(shift_levels(np.linspace(1.0, smallest, steps), shift), 0.0)


def trigflow_angles(
    steps: int, largest: float = 1.57080, intermediate: float = 1.3
) -> Float64[np.ndarray, " levels"]:
    """`steps + 1` falling angles of SANA-Sprint, the last one zero; two steps pass `intermediate`."""
    _check(steps, 1.0)
    if not 0 < largest <= 1.5709 or not 0 < intermediate < largest:
        raise ConfigError(f"angles {largest} and {intermediate} must fall within (0, pi/2]")
    if steps == 2:
        return np.array([largest, intermediate, 0.0])
    return np.linspace(largest, 0.0, steps + 1)


def _check(steps: int, shift: float) -> None:
    if not 1 <= steps <= TRAINING_LEVELS:
        raise ConfigError(f"steps was {steps}; allowed: 1 to {TRAINING_LEVELS}; 20 is a good start")
    if not (math.isfinite(shift) and shift > 0):
        raise ConfigError(f"shift was {shift}; it must be a positive number; 3.0 is usual, 6.0 at 4096 px")


def logit_normal_levels(
    count: int, shift: float, generator: torch.Generator, mean: float = 0.0, std: float = 1.0
) -> Float[Tensor, " count"]:
    """Random training levels: logit-normal on a grid of 1000, then shifted (section 3.2).

    For training alone; the network reads `1000 * level`, truncated where the published recipe is followed.
    """
    noise = torch.randn(count, generator=generator, device=generator.device)
    drawn = torch.sigmoid(mean + std * noise)
    grid = torch.floor(drawn * TRAINING_LEVELS).clamp(max=TRAINING_LEVELS - 1) / TRAINING_LEVELS
    return shift_levels(grid, shift)
