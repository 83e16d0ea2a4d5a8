"""Solvers against diffusers' schedulers, against a case with a known answer, and at their edges."""

import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from fewer.core.errors import ConfigError
from fewer.generate.sampling import sample
from fewer.generate.sampling.sampler import check_method

SHIFTS = [1.0, 3.0, 4.0, 6.0, 12.0]


def toy_velocity(latents: torch.Tensor, timestep: float) -> torch.Tensor:
    return torch.tanh(latents + timestep / 1000) - 0.3 * latents


def last(steps):
    return list(steps)[-1].latents


def diffusers_result(scheduler, noise: torch.Tensor, steps: int) -> torch.Tensor:
    scheduler.set_timesteps(steps)
    latents = noise
    for timestep in scheduler.timesteps:
        velocity = toy_velocity(latents, float(timestep))
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    return latents


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize(
    ("order", "solver"), [(1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint")]
)
def test_flow_dpm_equals_diffusers_for_all_step_counts(shift, order, solver):
    noise = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    for steps in range(1, 51) if (order, solver) == (2, "midpoint") else (1, 2, 3, 5, 14, 15, 20, 50):
        theirs = DPMSolverMultistepScheduler(
            use_flow_sigmas=True,
            flow_shift=shift,
            prediction_type="flow_prediction",
            solver_order=order,
            solver_type=solver,
        )
        expected = diffusers_result(theirs, noise, steps)
        result = last(sample(toy_velocity, noise, steps, shift, order=order, solver=solver))
        assert torch.isfinite(result).all()
        assert (result - expected).abs().max() <= 1e-5, steps


@pytest.mark.parametrize("shift", SHIFTS)
def test_flow_euler_equals_diffusers(shift):
    noise = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    for steps in (1, 2, 3, 20, 50):
        expected = diffusers_result(FlowMatchEulerDiscreteScheduler(shift=shift), noise, steps)
        result = last(sample(toy_velocity, noise, steps, shift, method="flow-euler"))
        assert (result - expected).abs().max() <= 1e-5, steps


def gaussian_velocity(
    latents: torch.Tensor, level: float, mean: float = 0.7, std: float = 0.3
) -> torch.Tensor:
    """Exact velocity when every element of the data is N(mean, std²)."""
    alpha = 1 - level
    gain = alpha * std**2 / (alpha**2 * std**2 + level**2)
    clean = mean + gain * (latents - alpha * mean)
    return (latents - clean) / level


@pytest.mark.parametrize(
    ("method", "steps", "error"),
    [
        ("flow-dpm", 14, 0.141),
        ("flow-dpm", 20, 0.0745),
        ("flow-dpm", 28, 0.0317),
        ("flow-dpm", 50, 0.0010),
        ("flow-euler", 14, 0.186),
        ("flow-euler", 20, 0.131),
        ("flow-euler", 28, 0.095),
        ("flow-euler", 50, 0.054),
    ],
)
def test_error_on_gaussian_data_is_the_known_one(method, steps, error):
    torch.manual_seed(0)
    noise = torch.randn(1, 1, 4, 4)
    levels = [float(t) for t in _levels(method, steps)]
    generated = last(sample(gaussian_velocity, noise, method=method, levels=levels, time="unit"))
    worst = (generated - (0.7 + 0.3 * noise)).abs().max().item()
    assert worst <= error * 1.05 + 1e-4


def _levels(method, steps):
    from fewer.generate.sampling.schedule import flow_dpm_levels, flow_euler_levels

    return (flow_dpm_levels if method == "flow-dpm" else flow_euler_levels)(steps, 3.0)


@pytest.mark.parametrize(
    ("order", "solver"), [(1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint")]
)
def test_error_falls_with_the_order_of_the_solver(order, solver):
    """Halving the step size between two inner levels divides the error by about 2^order."""
    noise = torch.linspace(-1.5, 1.5, 9).reshape(1, 1, 3, 3)

    def error(steps: int) -> float:
        # evenly spaced in log signal-to-noise, where the solver's theory lives; stop before the jump to zero
        inner = torch.sigmoid(-torch.linspace(-3, 3, steps + 1, dtype=torch.float64)).tolist()
        steps_done = list(
            sample(gaussian_velocity, noise, levels=[*inner, 0.0], time="unit", order=order, solver=solver)
        )
        start, end = inner[0], inner[-1]
        scale = lambda s: math.sqrt((0.3 * (1 - s)) ** 2 + s**2)  # noqa: E731
        exact = 0.7 * (1 - end) + scale(end) / scale(start) * (noise - 0.7 * (1 - start))
        return (steps_done[-2].latents - exact).abs().max().item()

    rate = math.log2(error(20) / error(40))
    assert rate > min(order, 2.6) - 0.35


def test_one_step_returns_the_guess_and_levels_may_begin_at_pure_noise():
    noise = torch.randn(1, 1, 2, 2)
    only = next(iter(sample(toy_velocity, noise, steps=1)))
    torch.testing.assert_close(only.latents, only.clean)
    assert only.sigma == 0 and only.total == 1
    from_one = last(sample(toy_velocity, noise, levels=[1.0, 0.6, 0.3, 0.0]))
    assert torch.isfinite(from_one).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_state_is_single_precision(dtype):
    step = next(iter(sample(lambda x, t: x.to(dtype), torch.randn(1, 1, 1, 5).to(dtype), 3)))
    assert step.latents.dtype == torch.float32


def test_breaking_off_stops_evaluating():
    calls = []

    def counted(latents, timestep):
        calls.append(timestep)
        return toy_velocity(latents, timestep)

    for step in sample(counted, torch.randn(1, 1, 2, 2), 20):
        if step.index == 3:
            break
    assert len(calls) == 4


def test_wrong_input_is_named_before_the_first_step():
    noise = torch.randn(1, 1, 2, 2)
    with pytest.raises(ConfigError, match="steps"):
        sample(toy_velocity, noise, steps=0)
    for method, order, solver in (("ddim", 2, "heun"), ("flow-dpm", 4, "heun"), ("flow-dpm", 2, "odd")):
        with pytest.raises(ConfigError, match="allowed"):
            check_method(method, order, solver)
    with pytest.raises(ConfigError, match="noise"):
        sample(toy_velocity, noise * float("nan"))
    for levels in ([1.0], [0.5, 0.6, 0.0], [0.9, 0.5], [1.5, 0.0]):
        with pytest.raises(ConfigError, match="levels"):
            sample(toy_velocity, noise, levels=levels)
    with pytest.raises(ConfigError, match="NaN"):
        list(sample(lambda x, t: x * float("nan"), noise, 2))
