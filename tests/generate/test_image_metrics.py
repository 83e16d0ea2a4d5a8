"""PSNR and SSIM equal torchmetrics; band energies add up; sharpness falls with blur."""

import pytest
import torch
from torch.nn import functional

from fewer.generate import image_metrics
from fewer.generate.image_metrics import FAINTEST, band_energy, energy_kept, psnr, sharpness, ssim


def pair(size: tuple[int, int], channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    one = torch.rand(2, channels, *size, generator=generator) * 2 - 1
    return one, (one + 0.2 * torch.randn(one.shape, generator=generator)).clamp(-1, 1)


@pytest.mark.parametrize("size", [(11, 11), (16, 23), (64, 64)])
@pytest.mark.parametrize("channels", [1, 3])
def test_equal_to_torchmetrics(size: tuple[int, int], channels: int) -> None:
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    one, other = pair(size, channels)
    for index in range(2):
        a, b = one[index : index + 1], other[index : index + 1]
        assert abs(psnr(a, b) - peak_signal_noise_ratio(a, b, data_range=2.0)) < 1e-4
        expected = structural_similarity_index_measure(a.double(), b.double(), data_range=2.0)
        assert abs(ssim(a, b) - expected) < 1e-6


@pytest.mark.parametrize("size", [(1, 1), (5, 123), (10, 2)])
def test_small_pictures(size: tuple[int, int]) -> None:
    one, other = pair(size)
    assert torch.allclose(ssim(one, one), torch.ones(2, dtype=torch.float64))
    assert (ssim(one, other) <= 1).all()
    assert torch.isinf(psnr(one, one)).all()


@pytest.mark.parametrize("strip", [1, 1000])
def test_strips_change_nothing(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = pair((23, 17))
    whole = psnr(one, other), ssim(one, other)
    monkeypatch.setattr(image_metrics, "STRIP", strip)
    assert torch.allclose(psnr(one, other), whole[0], rtol=1e-12)
    assert torch.allclose(ssim(one, other), whole[1], rtol=1e-12)


def test_band_energies_add_up_to_the_variance() -> None:
    image, _ = pair((32, 48))
    variance = (image.double() - image.double().mean((2, 3), keepdim=True)).square().mean((2, 3)).mean()
    assert torch.allclose(band_energy(image).sum(), variance)


def test_sharpness() -> None:
    image, _ = pair((32, 32))
    assert sharpness(image, image) == 1
    assert sharpness(functional.avg_pool2d(image, 3, 1, 1), image) < 0.3
    assert sharpness(2 * image, image) == pytest.approx(4)


def test_what_has_no_energy_keeps_none() -> None:
    image, _ = pair((32, 32))
    assert energy_kept(image, torch.full_like(image, 0.3)) == [None] * 4
    assert energy_kept(0 * image, image) == [0.0] * 4
    faint = torch.full((1, 1, 1024, 1024), 0.5)
    faint[..., 500, 500] += 2 / 255  # one pixel, one level
    assert band_energy(faint).min() > FAINTEST
