"""Distilling many guided steps into few."""

import pytest
import torch

from fewer.generate.lora import attach
from fewer.generate.sampling import sample
from fewer.generate.sampling.few_steps import few_step_levels
from fewer.generate.training.few_steps import FewStepsTraining, Prompts, distill_few_steps

_SHIFT = 1.5
_QUICK = FewStepsTraining(
    steps=120,
    batch=16,
    rank=8,
    learning_rate=5e-3,
    guidance=3.0,
    shift=_SHIFT,
    teacher_steps=6,
    parts=8,
    reuse=5,
)


@pytest.fixture
def prompts() -> Prompts:
    generator = torch.Generator().manual_seed(3)
    mask = torch.arange(5)[None] < 2 + torch.arange(7)[:, None] % 4
    return Prompts(torch.randn(7, 5, 12, generator=generator), mask)


@torch.no_grad()
def _draw(model, prompts: Prompts, noise, which, guidance: float, **how):
    tokens, mask = prompts.rows(which)
    empty, empty_mask = prompts.rows(torch.zeros_like(which))

    def velocity(latents, timestep):
        times = torch.full((len(latents),), timestep)
        with_text = model(latents, times, tokens, mask)
        if guidance == 1:
            return with_text
        without = model(latents, times, empty, empty_mask)
        return without + guidance * (with_text - without)

    *_, last = sample(velocity, noise, shift=_SHIFT, **how)
    return last.latents


def test_two_steps_come_closer_to_twenty_than_the_teachers_two(tiny, prompts):
    model = tiny()
    with torch.no_grad():  # a flow with bends, as trained ones have: random weights are nearly straight
        model.proj_out.weight.mul_(3)
    noise = torch.randn(32, 4, 4, 4, generator=torch.Generator().manual_seed(9))
    which = 1 + torch.arange(32) % 6
    twenty = _draw(model, prompts, noise, which, 3.0, steps=20)
    plain = _draw(model, prompts, noise, which, 3.0, steps=2)
    adapter, result = distill_few_steps(model, prompts, _QUICK)
    attach(model, adapter, name="few_steps")
    jumped = _draw(model, prompts, noise, which, 1.0, levels=few_step_levels(_SHIFT)[1], order=1)
    errors = [(found - twenty).square().mean().sqrt() for found in (jumped, plain)]
    print(errors, result.losses[0], result.losses[-1])
    assert errors[0] < 0.6 * errors[1]
    assert sum(result.losses[-20:]) < 0.5 * sum(result.losses[:20])
