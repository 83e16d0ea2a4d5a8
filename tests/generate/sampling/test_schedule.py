"""Noise levels against the published grids and diffusers' schedulers."""

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, SCMScheduler

from fewer.core.errors import ConfigError
from fewer.generate.sampling.schedule import (
    flow_dpm_levels,
    flow_euler_levels,
    logit_normal_levels,
    shift_levels,
    trigflow_angles,
)

SHIFTS = [1.0, 3.0, 4.0, 6.0, 12.0]


@pytest.mark.parametrize("shift", SHIFTS)
def test_levels_equal_diffusers(shift):
    dpm = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, flow_shift=shift, prediction_type="flow_prediction"
    )
    euler = FlowMatchEulerDiscreteScheduler(shift=shift)
    for steps in range(1, 51):
        dpm.set_timesteps(steps)
        ours = flow_dpm_levels(steps, shift)
        np.testing.assert_allclose(ours, dpm.sigmas.numpy(), atol=1e-7)
        assert np.trunc(1000 * ours[:-1]).astype(int).tolist() == dpm.timesteps.tolist()
        euler.set_timesteps(steps)
        np.testing.assert_allclose(flow_euler_levels(steps, shift), euler.sigmas.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "times"),
    [
        (20, "999 982 963 944 922 899 874 847 817 785 749 710 666 617 562 499 428 345 249 136"),
        (14, "999 974 947 916 881 843 799 749 691 624 545 449 333 187"),
        (4, "999 899 749 499"),
    ],
)
def test_published_times(steps, times):
    assert [int(1000 * level) for level in flow_dpm_levels(steps, 3.0)[:-1]] == [
        int(time) for time in times.split()
    ]


def test_shift_adds_its_logarithm_in_logit_space():
    levels = np.linspace(0.01, 0.99, 123)
    logit = lambda p: np.log(p / (1 - p))  # noqa: E731
    np.testing.assert_allclose(logit(shift_levels(levels, 6.0)), logit(levels) + np.log(6.0), rtol=1e-9)


@pytest.mark.parametrize(("shift", "median", "below_half"), [(3.0, 0.75, 0.136), (4.0, 0.80, 0.083)])
def test_training_levels_have_the_analytic_distribution(shift, median, below_half):
    drawn = logit_normal_levels(100_000, shift, torch.Generator().manual_seed(0))
    assert abs(drawn.median().item() - median) < 0.005
    assert abs((drawn < 0.5).float().mean().item() - below_half) < 0.004
    assert drawn.min() >= 0 and drawn.max() < 1


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_angles_equal_diffusers(steps):
    scheduler = SCMScheduler(prediction_type="trigflow", sigma_data=0.5)
    scheduler.set_timesteps(steps, intermediate_timesteps=1.3 if steps == 2 else None)
    np.testing.assert_allclose(trigflow_angles(steps), scheduler.timesteps.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "shift"), [(0, 3.0), (-1, 3.0), (1001, 3.0), (20, 0.0), (20, float("nan"))]
)
def test_wrong_settings_are_named(steps, shift):
    with pytest.raises(ConfigError, match=r"steps|shift"):
        flow_dpm_levels(steps, shift)
    with pytest.raises(ConfigError, match=r"steps|shift"):
        flow_euler_levels(steps, shift)
    with pytest.raises(ConfigError):
        trigflow_angles(2, largest=1.0, intermediate=1.2)
