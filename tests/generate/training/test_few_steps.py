"""Distilling many guided steps into few."""

import dataclasses
from itertools import pairwise

import pytest
import torch

from fewer.core.errors import ConfigError, DataError
from fewer.core.progress import SilentProgress
from fewer.generate.lora import attach
from fewer.generate.sampling import sample
from fewer.generate.sampling.few_steps import few_step_levels
from fewer.generate.training.few_steps import FewStepsTraining, Prompts, distill_few_steps, levels_from

_SHIFT = 1.5
_QUICK = FewStepsTraining(
    steps=60,
    batch=24,
    rank=8,
    learning_rate=1e-2,
    guidance=3.0,
    shift=_SHIFT,
    teacher_steps=5,
    parts=3,
    reuse=6,
    dtype="fp32",
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
    with torch.no_grad():  # random weights flow nearly straight; trained ones bend
        model.proj_out.weight.mul_(3)
    noise = torch.randn(32, 4, 4, 4, generator=torch.Generator().manual_seed(9))
    which = 1 + torch.arange(32) % 6
    twenty = _draw(model, prompts, noise, which, 3.0, steps=20)
    plain = _draw(model, prompts, noise, which, 3.0, steps=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapter, result = distill_few_steps(model, prompts, _QUICK)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    attach(model, adapter, name="few_steps")
    jumped = _draw(model, prompts, noise, which, 1.0, levels=few_step_levels(_SHIFT)[1], order=1)
    errors = [float((found - twenty).square().mean().sqrt()) for found in (jumped, plain)]
    assert errors[0] < 0.75 * errors[1]
    assert sum(result.losses[-10:]) < 0.6 * sum(result.losses[:10])


class _Interrupted(SilentProgress):
    """Ctrl-C after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.left -= steps
        if self.left <= 0:
            raise KeyboardInterrupt


def test_a_run_stopped_after_a_round_ends_with_the_same_numbers(tiny, prompts, tmp_path):
    plan = dataclasses.replace(_QUICK, steps=8, batch=3, parts=2, reuse=2)
    whole, _ = distill_few_steps(tiny(), prompts, plan)
    with pytest.raises(KeyboardInterrupt):
        distill_few_steps(tiny(), prompts, plan, checkpoints=tmp_path, progress=_Interrupted(4))
    resumed, result = distill_few_steps(tiny(), prompts, plan, checkpoints=tmp_path, resume=True)
    assert len(result.losses) == 4
    for layer, low_rank in whole.items():
        assert torch.equal(low_rank.up, resumed[layer].up)
        assert torch.equal(low_rank.down, resumed[layer].down)


def test_levels_of_the_teacher_go_on_from_any_level():
    assert levels_from(0.5, 12, 1.0) == pytest.approx([0.5, 5 / 12, 4 / 12, 3 / 12, 2 / 12, 1 / 12, 0.0])
    for level in (0.2, 0.75, 0.999):
        grid = levels_from(level, 12, 3.0)
        assert grid[0] == level
        assert grid[-1] == 0
        assert all(above > below for above, below in pairwise(grid))


def test_every_linear_layer_is_adapted(tiny, prompts):
    model = tiny()
    adapter, _ = distill_few_steps(model, prompts, dataclasses.replace(_QUICK, steps=1, batch=1, parts=1))
    names = {name.rpartition(".")[2] for name in adapter}
    assert {"to_q", "to_k", "to_v", "0", "conv_inverted", "conv_point", "proj_out", "linear"} <= names
    attach(model, adapter, name="fits")


def test_what_cannot_be_distilled_is_refused(tiny, prompts):
    with pytest.raises(ConfigError, match="few-step model already"):
        distill_few_steps(tiny(guidance_embeds=True), prompts, _QUICK)
    with pytest.raises(DataError, match="no prompts"):
        distill_few_steps(tiny(), Prompts(prompts.tokens[:1], prompts.mask[:1]), _QUICK)
