from collections.abc import Callable

import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.generate.engine import accelerate
from fewer.generate.engine.loop import GraphedLoop, step_table
from fewer.generate.sampling import Guidance, guided_velocity, sample
from fewer.generate.sampling.schedule import flow_dpm_levels, flow_euler_levels
from fewer.generate.transformer import SanaTransformer


def levels_of(method: str, steps: int) -> list[float]:
    return (flow_euler_levels if method == "flow-euler" else flow_dpm_levels)(steps, 3.0).tolist()


@pytest.mark.parametrize("method", ["flow-dpm", "flow-euler"])
@pytest.mark.parametrize(("order", "steps"), [(1, 3), (2, 1), (2, 6), (2, 17)])
def test_the_tables_sums_are_the_solver(method: str, order: int, steps: int) -> None:
    """On an equation that is not linear, so that every coefficient counts."""
    noise, levels, reads = torch.randn(2, 3, 4, 4), levels_of(method, steps), []

    def velocity(x: torch.Tensor, time: float) -> torch.Tensor:
        reads.append(time)
        return torch.sin(x) + time / 1000

    expected = list(sample(velocity, noise, method=method, order=order, levels=levels))
    x, guess = noise, torch.zeros_like(noise)
    for step, facts in zip(expected, step_table(levels, 1.0, method, order), strict=True):
        clean = x - facts[1] * velocity(x, facts[0].item())
        x, guess = facts[2] * x + facts[3] * clean + facts[4] * guess, clean
        torch.testing.assert_close(x, step.latents, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(clean, step.clean, rtol=1e-4, atol=1e-5)
    assert reads[:steps] == pytest.approx(reads[steps:], rel=1e-6)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@torch.no_grad()
def test_pictures_one_after_another_are_those_of_the_plain_loop(
    tiny: Callable[..., SanaTransformer], guided: bool, masked: bool
) -> None:
    plain = tiny()
    fast, guidance = accelerate(plain), Guidance(scale=4.5 if guided else 1.0)
    loop, levels = GraphedLoop(fast), levels_of("flow-dpm", 4)
    for seed in (1, 2, 1):
        generator = torch.Generator().manual_seed(seed)
        noise, words = (
            torch.randn(1, 4, 4, 6, generator=generator),
            torch.randn(2, 5, 12, generator=generator),
        )
        mask = torch.ones(2, 5, dtype=torch.bool)
        mask[:, 3:] = not masked

        def evaluator(model: SanaTransformer, first: int, words=words, mask=mask):
            text = model.prepare(words[first:], mask[first:])
            return lambda x, t: model.denoise(x, torch.full((len(x),), t), text)

        velocity = guided_velocity(evaluator(plain, 1), evaluator(plain, 0), guidance)
        first = 0 if guided else 1
        text = fast.prepare(words[first:], mask[first:])
        expected = list(sample(velocity, noise, levels=levels))
        for one, other in zip(loop(text, noise, levels, guidance), expected, strict=True):
            torch.testing.assert_close(one.latents, other.latents, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(one.clean, other.clean, rtol=1e-3, atol=1e-3)
            assert (one.index, one.total, one.sigma) == (other.index, other.total, other.sigma)


@torch.no_grad()
def test_two_pictures_by_turns_do_not_mix_and_steps_keep_their_values(
    tiny: Callable[..., SanaTransformer],
) -> None:
    loop, levels, guidance = GraphedLoop(accelerate(tiny())), levels_of("flow-dpm", 3), Guidance(scale=1.0)
    text = loop.model.prepare(torch.randn(1, 5, 12))
    noises = torch.randn(2, 1, 4, 4, 4)
    alone = [list(loop(text, noise, levels, guidance)) for noise in noises]
    assert not torch.equal(alone[0][0].latents, alone[0][1].latents)
    turns = list(zip(*(loop(text, noise, levels, guidance) for noise in noises), strict=True))
    for picture in range(2):
        for step, both in zip(alone[picture], turns, strict=True):
            assert torch.equal(step.latents, both[picture].latents)


def test_what_is_not_finite_is_said(tiny: Callable[..., SanaTransformer]) -> None:
    fast = accelerate(tiny())
    with torch.no_grad(), pytest.raises(ConfigError, match="starting noise"):
        text = fast.prepare(torch.randn(1, 5, 12))
        noise = torch.full((1, 4, 4, 4), float("nan"))
        list(GraphedLoop(fast)(text, noise, levels_of("flow-dpm", 2), Guidance(scale=1.0)))
