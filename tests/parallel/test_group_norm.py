"""Acceptance A6."""

import copy

import pytest
import torch

from fewer.parallel.bands import cut
from fewer.parallel.group import Done, Group
from fewer.parallel.group_norm import ParallelGroupNorm
from fewer.parallel.plan import ParallelPlan
from fewer.parallel.session import Memory, Session
from fewer.parallel.simulated import run_simulated


def pictures(steps: int = 3, height: int = 7) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 6, height, 4, generator=generator) * 3 + 1
    drift = torch.randn(2, 6, height, 4, generator=generator)
    return [start + 0.1 * step * drift for step in range(steps)]


def norm() -> torch.nn.GroupNorm:
    module = torch.nn.GroupNorm(3, 6).requires_grad_(False)
    torch.nn.init.normal_(module.weight)
    torch.nn.init.normal_(module.bias)
    return module


def on_bands(
    module: torch.nn.GroupNorm, images: list[torch.Tensor], devices: int, **plan: object
) -> torch.Tensor:
    def rank_main(group: Group) -> torch.Tensor:
        session = Session(group, ParallelPlan(devices=devices, **plan))
        layer = ParallelGroupNorm(module, session, "norm")
        for step, image in enumerate(images):
            bands = cut(image.shape[2], devices)
            session.begin_step(100.0 - step, bands, 2)
            out = layer(image.narrow(2, bands.start(group.rank), bands.lengths[group.rank]))
        return out

    return torch.cat(run_simulated(devices, rank_main), dim=2)


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_sync_is_group_norm_even_for_ragged_bands_and_without_bessel(devices: int) -> None:
    module, images = norm(), pictures(1)
    assert torch.allclose(on_bands(module, images, devices, mode="sync"), module(images[0]), atol=2e-6)


@pytest.mark.parametrize("far", [10.0, 1000.0])
@pytest.mark.parametrize("affine", [True, False])
def test_features_far_from_zero_keep_their_variance(far: float, affine: bool) -> None:
    module = norm() if affine else torch.nn.GroupNorm(3, 6, affine=False)
    images = [image + far for image in pictures(3)]
    exactly = copy.deepcopy(module).double()(images[-1].double())
    limit = 2e-6 * far * float(exactly.abs().max())  # fp32 cannot tell where in its step x itself lies
    for plan in ({"mode": "sync"}, {"mode": "displaced", "warmup_steps": 0, "norm_rule": "sync"}):
        assert (on_bands(module, images, 3, **plan).double() - exactly).abs().max() < limit
    stale = on_bands(module, images, 3, mode="displaced", warmup_steps=0)
    near = on_bands(module, pictures(3), 3, mode="displaced", warmup_steps=0)
    assert (stale - near).abs().max() < 2 * limit


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_features_of_sixteen_bits_are_normalised_as_torch_does(dtype: torch.dtype) -> None:
    module, image = norm().to(dtype), (pictures(1)[0] + 5).to(dtype)
    expected = copy.deepcopy(module).double()(image.double())
    found = on_bands(module, [image], 3, mode="sync")
    assert found.dtype == dtype
    ours, theirs = (float((out.double() - expected).norm()) for out in (found, module(image)))
    assert ours <= 1.1 * theirs + 1e-6


def test_the_corrected_rule_gives_the_hand_computed_values() -> None:
    def rank_main(group: Group) -> tuple[float, float]:
        session = Session(group, ParallelPlan(devices=2, mode="displaced", warmup_steps=0))
        session.begin_step(1.0, cut(2, 2), 2)
        session.begin_step(0.5, cut(2, 2), 2)
        layer = ParallelGroupNorm(torch.nn.GroupNorm(1, 1), session, "norm")
        # Before: global (mean, square) (2, 8), own (1, 5). Now the own band has moved to (1.5, 6).
        moments = [torch.tensor(pair).view(2, 1, 1) for pair in ((2.0, 8.0), (1.0, 5.0), (1.5, 6.0))]
        session.memories["norm", "moments"] = Memory(Done(moments[0]), moments[1])
        mean, square = layer._global(moments[2])
        return float(mean), float(square)

    assert run_simulated(2, rank_main) == [(2.5, 9.0)] * 2


def test_a_negative_corrected_variance_falls_back_to_the_own_one() -> None:
    def rank_main(group: Group) -> torch.Tensor:
        session = Session(group, ParallelPlan(devices=2, mode="displaced", warmup_steps=0))
        session.begin_step(1.0, cut(2, 2), 2)
        session.begin_step(0.5, cut(2, 2), 2)
        layer = ParallelGroupNorm(torch.nn.GroupNorm(1, 1), session, "norm")
        band = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
        # Corrected: mean 3, square 5 -> variance -4. Own: mean 2, square 5 -> variance 1.
        session.memories["norm", "moments"] = Memory(
            Done(torch.tensor([3.0, 5.0]).view(2, 1, 1)), torch.tensor([2.0, 5.0]).view(2, 1, 1)
        )
        return layer(band).flatten()

    expected = (torch.tensor([1.0, 3.0]) - 3.0) / (1 + 1e-5) ** 0.5
    assert torch.allclose(run_simulated(2, rank_main)[0], expected)


def test_corrected_is_closer_than_stale_and_separate() -> None:
    module, images = norm(), pictures(4)
    expected = module(images[-1]).detach()
    errors = {
        rule: float(
            (on_bands(module, images, 2, mode="displaced", warmup_steps=0, norm_rule=rule) - expected).norm()
        )
        for rule in ("sync", "corrected", "stale", "separate")
    }
    assert errors["sync"] < 1e-4
    assert errors["corrected"] < errors["separate"] and errors["stale"] < errors["separate"]
