"""SANA-Sprint's sampler: one to four steps along a circle between data and noise (arXiv 2503.09641).

An angle a mixes cos(a) data with sin(a) noise. The network is a flow model underneath, so its input and
output are carried from the circle to the straight path and back.
"""

import math
from collections.abc import Callable, Iterator

from jaxtyping import Float
from torch import Tensor

from fewer.generate.sampling.sampler import Step, VelocityFn, require_finite
from fewer.generate.sampling.schedule import trigflow_angles

DATA_STD = 0.5


def sample_trigflow(
    velocity_fn: VelocityFn,
    noise: Float[Tensor, "batch channels lat_h lat_w"],
    draw_noise: Callable[[], Tensor],
    steps: int = 2,
    *,
    largest: float = 1.57080,
    intermediate: float = 1.3,
) -> Iterator[Step]:
    """Yields a `Step` per evaluation. `velocity_fn` reads a time of 0..1, as Sprint checkpoints do.

    `draw_noise` gives fresh unit noise of the latents' shape, once a step (the last one is not used, but
    drawn, as the published sampler does). Raises `ConfigError` for bad steps or angles.
    """
    angles = trigflow_angles(steps, largest, intermediate).tolist()
    require_finite(noise, "the starting noise")
    return _iterate(velocity_fn, noise.float() * DATA_STD, draw_noise, angles)


def _iterate(
    velocity_fn: VelocityFn, latents: Tensor, draw_noise: Callable[[], Tensor], angles: list[float]
) -> Iterator[Step]:
    total = len(angles) - 1
    for index in range(total):
        angle, following = angles[index], angles[index + 1]
        cos, sin = math.cos(angle), math.sin(angle)
        t = sin / (sin + cos)
        norm = math.hypot(t, 1 - t)
        scaled = latents / DATA_STD * norm
        velocity = velocity_fn(scaled, t).float()
        turn = DATA_STD * ((1 - 2 * t) * scaled + (1 - 2 * t + 2 * t * t) * velocity) / norm
        clean = cos * latents - sin * turn
        latents = math.cos(following) * clean + math.sin(following) * DATA_STD * draw_noise()
        if index == total - 1:
            latents = clean
            require_finite(clean, "the generated latents")
        yield Step(
            index=index,
            total=total,
            latents=latents / DATA_STD,
            sigma=math.sin(following) / (math.sin(following) + math.cos(following)),
            clean=clean / DATA_STD,
        )
