"""Guidance: where it acts, what it costs, and its limits."""

import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.generate.sampling import Guidance, guided_velocity
from fewer.generate.sampling.guidance import combine


def test_extrapolates_linearly():
    negative, positive = torch.randn(2, 3), torch.randn(2, 3)
    torch.testing.assert_close(combine(negative, positive, 1.0), positive)
    torch.testing.assert_close(combine(negative, positive, 0.0), negative)
    torch.testing.assert_close(combine(negative, positive, 3.0) - positive, 2 * (positive - negative))


def test_acts_within_its_interval_alone():
    calls = []

    def single(latents, timestep):
        calls.append("single")
        return latents

    def both(latents, timestep):
        calls.append("both")
        return torch.cat([torch.zeros(2, 1), torch.ones(2, 1)])

    velocity = guided_velocity(single, both, Guidance(scale=5.0, start=0.2, end=0.8))
    latents = torch.randn(2, 1)
    assert torch.equal(velocity(latents, 900.0), latents)
    assert torch.equal(velocity(latents, 500.0), torch.full((2, 1), 5.0))
    assert torch.equal(velocity(latents, 100.0), latents)
    assert calls == ["single", "both", "single"]


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_one_or_less_turns_it_off(scale):
    assert not Guidance(scale=scale).check().acts_at(500.0)


@pytest.mark.parametrize(
    "wrong", [{"scale": -1.0}, {"scale": float("nan")}, {"start": 0.9, "end": 0.1}, {"end": 1.5}]
)
def test_wrong_values_are_named(wrong):
    with pytest.raises(ConfigError, match="guidance"):
        Guidance(**wrong).check()
