"""Losses: zero at equality, known values, fp32 whatever comes in, odd sizes."""

import pytest
import torch

from fewer.generate.autoencoder import ReconstructionWeights, reconstruction_loss
from fewer.generate.autoencoder.losses import gradient_loss, pyramid_loss


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (7, 13), (64, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_pictures_cost_nothing(size: tuple[int, int], dtype: torch.dtype) -> None:
    image = torch.rand(2, 3, *size).to(dtype)
    loss = reconstruction_loss(image, image.clone())
    assert loss == 0 and loss.dtype == torch.float32
    assert reconstruction_loss(image + 0.5, image) > 0.49


def test_a_shift_of_colour_costs_pixels_only() -> None:
    image = torch.rand(1, 3, 16, 16)
    only_pixels = ReconstructionWeights(gradients=0.0, pyramid=0.0)
    assert torch.allclose(reconstruction_loss(image + 0.25, image, only_pixels), torch.tensor(0.25))
    assert gradient_loss(image + 0.25, image) < 1e-6 and pyramid_loss(image + 0.25, image) < 1e-6


def test_gradient_loss_of_a_ramp() -> None:
    ramp = torch.arange(8.0).repeat(1, 1, 8, 1)
    assert torch.allclose(gradient_loss(ramp, torch.zeros_like(ramp)), torch.tensor(1.0))


def test_blur_costs_more_than_the_pixels_say() -> None:
    """What the extra terms are for: blur against a colour shift of equal L1."""
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(image, 3, 1, 1, count_include_pad=False)
    shifted = image + (blurred - image).abs().mean()
    assert reconstruction_loss(blurred, image) > 1.5 * reconstruction_loss(shifted, image)
