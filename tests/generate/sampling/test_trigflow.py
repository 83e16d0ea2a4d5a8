"""Sprint's sampler against diffusers' scheduler and its pipeline's arithmetic."""

import pytest
import torch
from diffusers import SCMScheduler

from fewer.generate.sampling import sample_trigflow


def toy_velocity(latents: torch.Tensor, timestep: float) -> torch.Tensor:
    return torch.tanh(latents) + 0.1 * timestep


def diffusers_result(seed: int, steps: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scheduler = SCMScheduler(prediction_type="trigflow", sigma_data=0.5)
    scheduler.set_timesteps(steps, intermediate_timesteps=1.3 if steps == 2 else None)
    scheduler.set_begin_index(0)
    latents = torch.randn(1, 2, 3, 4, generator=generator) * 0.5
    for angle in scheduler.timesteps[:-1]:
        t = torch.sin(angle) / (torch.sin(angle) + torch.cos(angle))
        norm = torch.sqrt(t**2 + (1 - t) ** 2)
        model_input = latents / 0.5 * norm
        velocity = toy_velocity(model_input, float(t))
        output = ((1 - 2 * t) * model_input + (1 - 2 * t + 2 * t**2) * velocity) / norm * 0.5
        latents, denoised = scheduler.step(output, angle, latents, generator=generator, return_dict=False)
    return denoised / 0.5


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_equals_diffusers(steps):
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(1, 2, 3, 4, generator=generator)
    draw = lambda: torch.randn(1, 2, 3, 4, generator=generator)  # noqa: E731
    done = list(sample_trigflow(toy_velocity, noise, draw, steps))
    assert len(done) == steps
    assert done[-1].sigma == 0
    torch.testing.assert_close(done[-1].latents, diffusers_result(7, steps), rtol=0, atol=1e-5)
