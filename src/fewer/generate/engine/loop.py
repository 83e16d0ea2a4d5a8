"""The sampling loop with everything between two evaluations inside the step's graph.

A step is then: the row of a small table to the graph, one replay, one copy out of it. The table holds, for
every step, the network's time and the numbers of `fewer.kernels.solver`: they depend on the levels alone.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.generate.engine.graphs import StepGraphs
from fewer.generate.engine.sana import FusedSana
from fewer.generate.sampling.guidance import Guidance
from fewer.generate.sampling.sampler import Method, Step, require_finite
from fewer.generate.sampling.schedule import TRAINING_LEVELS
from fewer.generate.transformer.attention import KeysValues
from fewer.generate.transformer.prepared_text import PreparedText
from fewer.kernels.solver import guided_step


class GraphedLoop:
    """Draws with one `FusedSana`; keeps its graphs, so have one loop a model."""

    def __init__(self, model: FusedSana) -> None:
        self.model = model
        self.graphs = StepGraphs(self._step)
        self._masked = False
        self._drawing: object = None

    def __call__(
        self,
        text: PreparedText,
        noise: Float[Tensor, "batch channels lat_h lat_w"],
        levels: Sequence[float],
        guidance: Guidance,
        method: Method = "flow-dpm",
        order: int = 2,
    ) -> Iterator[Step]:
        """As `sample` with `guided_velocity`, up to rounding, for guidance at every level and midpoints.

        `text` begins with the negative prompts where guidance is wanted. Raises `ConfigError` for latents
        that stop being finite.
        """
        latents = noise.float()
        table = step_table(levels, guidance.scale, method, order, self.model.params.timestep_scale)
        rows = table.to(latents.device)
        # One object for this picture: its state and text are copied into the graph once.
        picture = object()
        state = torch.stack([latents, torch.zeros_like(latents)])
        flat = [part for block in text.blocks for part in (block.keys, block.values)]
        self._masked = text.mask is not None
        constants = [state, latents, *flat, *([] if text.mask is None else [text.mask])]
        version = (self.model._key(), self._masked)
        total = len(levels) - 1
        for index in range(total):
            if self._drawing is not picture:  # at its start, or after another picture's step
                constants[:2] = [state, self._for_network(state[0], guidance)]
                self._drawing = picture
            state = self.graphs([rows[index]], constants, picture, version)
            if index == total - 1 and not bool(torch.isfinite(state[0]).all()):
                require_finite(noise, "the starting noise")
                require_finite(state[0], "the generated latents")
            yield Step(
                index=index, total=total, latents=state[0], sigma=float(levels[index + 1]), clean=state[1]
            )

    def _for_network(self, latents: Tensor, guidance: Guidance) -> Tensor:
        return torch.cat([latents] * (2 if guidance.wanted else 1)).to(self.model.proj_out.weight.dtype)

    def _step(self, facts: Tensor, state: Tensor, network: Tensor, *rest: Tensor) -> Tensor:
        flat = list(rest)
        mask = flat.pop() if self._masked else None
        pairs = zip(flat[::2], flat[1::2], strict=True)
        text = PreparedText(tuple(KeysValues(keys, values) for keys, values in pairs), mask)
        velocity = self.model.step(network, facts[:1].expand(len(network)), text)
        guided_step(state, network, velocity, facts[1:])
        return state


def step_table(
    levels: Sequence[float], scale: float, method: Method, order: int, time_scale: float = 1.0
) -> Float[Tensor, "steps 6"]:
    """(time, s, a, b, d, g) of each step, for flow-euler and for flow-dpm of order 1 and 2 with midpoints.

    As in `sampling/sampler.py`, whose formulas these are, sorted by what they multiply.
    """
    table = []
    for index, (sigma, following) in enumerate(pairwise(levels)):
        time = TRAINING_LEVELS * sigma
        a, b, d = following / sigma, 1 - following / sigma, 0.0
        if method == "flow-dpm":
            time = float(math.trunc(time))
            a, b, d = _dpm(levels, index, order)
        table.append((time * time_scale, sigma, a, b, d, scale))
    return torch.tensor(table, dtype=torch.float64).float()


def _dpm(levels: Sequence[float], index: int, order: int) -> tuple[float, float, float]:
    sigma, following = levels[index], levels[index + 1]
    if following == 0:
        return 0.0, 1.0, 0.0
    h = _log_ratio(following) - _log_ratio(sigma)
    a, b = following / sigma, (1 - following) * (1 - math.exp(-h))
    if index == 0 or order == 1:
        return a, b, 0.0
    r = (_log_ratio(sigma) - _log_ratio(levels[index - 1])) / h
    slope = 0.5 * b / r
    return a, b + slope, -slope


def _log_ratio(sigma: float) -> float:
    return -math.inf if sigma >= 1 else math.log1p(-sigma) - math.log(sigma)
