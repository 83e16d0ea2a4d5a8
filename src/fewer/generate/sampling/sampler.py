"""From noise to latents: solvers of the flow equation as generators of steps.

Each iteration evaluates the network once and yields a `Step`. The caller shows it, streams it, or stops
iterating: cancelling is a `break`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.core.errors import ConfigError
from fewer.generate.sampling.schedule import TRAINING_LEVELS, flow_dpm_levels, flow_euler_levels

Method = Literal["flow-dpm", "flow-euler"]
VelocityFn = Callable[[Tensor, float], Tensor]
"""(latents, timestep) -> velocity, noise minus data, of the latents' shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Where the sampler stands after evaluating the network once more."""

    index: int
    """0 for the first step."""
    total: int
    latents: Float[Tensor, "batch channels lat_h lat_w"]
    """After this step, in fp32."""
    sigma: float
    """Noise level of `latents`; 0 after the last step."""
    clean: Float[Tensor, "batch channels lat_h lat_w"]
    """The network's present guess of the noise-free latents: what a preview shows."""


def sample(
    velocity_fn: VelocityFn,
    noise: Float[Tensor, "batch channels lat_h lat_w"],
    steps: int = 20,
    shift: float = 3.0,
    method: Method = "flow-dpm",
    *,
    order: Literal[1, 2, 3] = 2,
    solver: Literal["midpoint", "heun"] = "midpoint",
    levels: Sequence[float] | None = None,
    time: Literal["thousand", "unit"] = "thousand",
) -> Iterator[Step]:
    """Solves dx/ds = v(x, s) from noise (s = 1) to data (s = 0) in `steps` evaluations of `velocity_fn`.

    "flow-dpm" is DPM-Solver++ in multistep form on the flow path; `order` and `solver` choose its variant
    (arXiv 2211.01095). "flow-euler" takes straight steps on its own grid. `levels` replaces the grid by
    your own: falling, the last one 0. `time` is what `velocity_fn` reads: "thousand" a whole number of
    0..1000 as Sana's networks do (flow-euler: not rounded), "unit" the level itself, for other flow models.
    State is kept in fp32. Raises `ConfigError` for bad settings, and when the latents stop being finite.
    """
    grid = _grid(steps, shift, method, levels)
    check_method(method, order, solver)
    if not noise.is_cuda:  # on a GPU the answer would be waited for; there it is asked when the latents fail
        require_finite(noise, "the starting noise")
    return _iterate(velocity_fn, noise.float(), grid, method, order, solver, time)


def _iterate(
    velocity_fn: VelocityFn,
    latents: Tensor,
    grid: list[float],
    method: Method,
    order: int,
    solver: str,
    time: str,
) -> Iterator[Step]:
    guesses: list[Tensor] = []
    noise, total = latents, len(grid) - 1
    for index in range(total):
        sigma, following = grid[index], grid[index + 1]
        timestep = sigma if time == "unit" else TRAINING_LEVELS * sigma
        if time == "thousand" and method == "flow-dpm":
            timestep = float(math.trunc(timestep))
        velocity = velocity_fn(latents, timestep).float()
        # Here and below one kernel for a product and a sum: between two steps a GPU does nothing else.
        clean = torch.sub(latents, velocity, alpha=sigma)
        if method == "flow-euler":
            latents = torch.add(latents, velocity, alpha=following - sigma)
        else:
            guesses = [clean, *guesses][:order]
            latents = dpm_update(latents, guesses[: _usable(order, index, total)], grid, index, solver)
        if index == total - 1 and not bool(torch.isfinite(latents).all()):
            require_finite(noise, "the starting noise")
            require_finite(latents, "the generated latents")
        yield Step(index=index, total=total, latents=latents, sigma=following, clean=clean)


def _usable(order: int, index: int, total: int) -> int:
    """How many guesses a step may use: few at the start, one at the jump to zero, and with fewer than 15
    steps at most two just before it, where three would overshoot."""
    if index == total - 1:
        return 1
    return min(order, 2) if index == total - 2 and total < 15 else order


def dpm_update(
    latents: Float[Tensor, "*shape"],
    guesses: list[Tensor],
    grid: Sequence[float],
    index: int,
    solver: str = "midpoint",
) -> Float[Tensor, "*shape"]:
    """One step of DPM-Solver++ (arXiv 2211.01095, algorithms 1 and 2) with alpha = 1 - sigma.

    `guesses` are predictions of the data at grid points `index`, `index - 1`, …; their number is the order.
    """
    sigma, following = grid[index], grid[index + 1]
    if following == 0:
        return guesses[0]  # alpha = 1 and e^-h = 0: the formulas below with lambda = infinity
    h = _lambda(following) - _lambda(sigma)
    decay = math.exp(-h)  # 0 when the first level is pure noise
    alpha = 1 - following
    result = torch.sub(following / sigma * latents, guesses[0], alpha=alpha * (decay - 1))
    if len(guesses) == 1:
        return result
    # r are past step sizes in units of this one; D are divided differences of the guesses.
    r0 = (_lambda(sigma) - _lambda(grid[index - 1])) / h
    if len(guesses) == 2:
        factor = -0.5 * (decay - 1) if solver == "midpoint" else (decay - 1) / h + 1
        return torch.add(result, guesses[0] - guesses[1], alpha=alpha * factor / r0)
    slope = (guesses[0] - guesses[1]) / r0
    r1 = (_lambda(grid[index - 1]) - _lambda(grid[index - 2])) / h
    earlier = (guesses[1] - guesses[2]) / r1
    first = slope + r0 / (r0 + r1) * (slope - earlier)
    second = (slope - earlier) / (r0 + r1)
    result = result + alpha * ((decay - 1) / h + 1) * first
    return result - alpha * ((decay - 1 + h) / h**2 - 0.5) * second


def _lambda(sigma: float) -> float:
    """Half the logarithm of the signal-to-noise ratio; minus infinity at pure noise."""
    return -math.inf if sigma >= 1 else math.log1p(-sigma) - math.log(sigma)


def check_method(method: str, order: int, solver: str) -> None:
    """Raises `ConfigError` for a solver that does not exist."""
    if method not in ("flow-dpm", "flow-euler"):
        raise ConfigError(f"sampler was {method!r}; allowed: flow-dpm, flow-euler")
    if order not in (1, 2, 3) or solver not in ("midpoint", "heun"):
        raise ConfigError(f"order {order} and solver {solver!r}; allowed: 1, 2, 3 and midpoint, heun")


def _grid(steps: int, shift: float, method: Method, levels: Sequence[float] | None) -> list[float]:
    if levels is not None:
        grid = [float(level) for level in levels]
    else:
        grid = (flow_euler_levels if method == "flow-euler" else flow_dpm_levels)(steps, shift).tolist()
    falling = all(a > b for a, b in pairwise(grid))
    if len(grid) < 2 or not falling or grid[0] > 1 or grid[-1] != 0:
        raise ConfigError("levels must fall from at most 1 to exactly 0, at least two of them")
    return grid


def require_finite(latents: Tensor, what: str) -> None:
    if not bool(torch.isfinite(latents).all()):
        raise ConfigError(f"{what} hold NaN or infinity; with fp16 try bf16 or fp32, else check the weights")
