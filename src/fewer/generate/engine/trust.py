"""Trust after a look: once a process, the engine's result is compared with the plain network's on this GPU.

Kernels are compiled for a GPU that nobody here may have seen. What does not run there, or gives other
numbers, is left out: the plain network draws, slower, and the log says why.
"""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.transformer.sana import SanaTransformer

logger = logging.getLogger(__name__)
M = TypeVar("M", bound=nn.Module)

MOST_ERROR = 0.1
"""Relative L2. Rounding in 16 bits gives about 0.01, a wrong kernel far more than this."""
_LARGEST_SIDE = 32


def trusted(plain: M, fast: M) -> M:
    """`fast` if it gives what `plain` gives on random latents, up to rounding; else `plain` and a warning."""
    if fast is plain:
        return plain
    trial = _TRIALS[DCAutoencoder if isinstance(plain, DCAutoencoder) else SanaTransformer](plain)
    with torch.inference_mode():
        expected = trial(plain)
        try:
            error = relative_error(trial(fast), expected)
        except torch.OutOfMemoryError:
            raise
        except Exception as problem:  # of a compiler, a driver or a launch: any of them means "not here"
            logger.warning(
                "the engine does not run here, so it stays off (%s: %s)", type(problem).__name__, problem
            )
            return plain
    if not error <= MOST_ERROR:
        logger.warning("the engine is off by %.2g here, so it stays off; please report this GPU", error)
        return plain
    return fast


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found - expected‖ / ‖expected‖; NaN where a number is."""
    scale = expected.float().norm().clamp(min=1e-12)
    return float((found.float() - expected.float()).norm() / scale)


def _denoise_once(plain: SanaTransformer) -> Callable[[SanaTransformer], Tensor]:
    params, like = plain.params, plain.proj_out.weight
    generator = torch.Generator().manual_seed(0)
    side = min(params.sample_size, _LARGEST_SIDE) // params.patch_size * params.patch_size

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(like)

    latents, text = draw(2, params.in_channels, side, side), draw(2, 24, params.caption_channels)
    mask = torch.ones(2, 24, dtype=torch.bool, device=like.device)
    mask[0, 9:] = False
    times = torch.tensor([900.0, 300.0], device=like.device) * params.timestep_scale
    guidance = torch.full_like(times, 4.5) if params.guidance_embeds else None

    def run(network: SanaTransformer) -> Tensor:
        return network.denoise(latents, times, network.prepare(text, mask), guidance)

    return run


def _decode_once(plain: DCAutoencoder) -> Callable[[DCAutoencoder], Tensor]:
    like = next(plain.parameters())
    channels = plain.config.latent_channels
    latents = torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(0)).to(like)
    return lambda network: network.decode(latents, tile=None)


_TRIALS: dict[type, Callable] = {SanaTransformer: _denoise_once, DCAutoencoder: _decode_once}
