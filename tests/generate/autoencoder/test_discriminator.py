"""The critic: judges patches, hinge losses at their known values, samples independent of each other."""

import pytest
import torch

from fewer.generate.autoencoder.discriminator import PatchDiscriminator, critic_loss, generator_loss


def test_it_judges_patches_of_seventy_pixels() -> None:
    critic = PatchDiscriminator(3, 8)
    assert critic(torch.rand(2, 3, 64, 96)).shape == (2, 1, 6, 10)
    image = torch.rand(1, 3, 256, 256, requires_grad=True)
    with torch.no_grad():  # norms see the whole sample; the patch is that of the convolutions
        for index, layer in enumerate(critic.layers):
            if isinstance(layer, torch.nn.GroupNorm):
                critic.layers[index] = torch.nn.Identity()
    judged = critic(image)
    judged[0, 0, judged.shape[2] // 2, judged.shape[3] // 2].backward()
    rows = image.grad.abs().sum((0, 1, 3)).nonzero()
    assert int(rows.max() - rows.min()) + 1 == 70  # Isola et al. 2017


def test_hinge_values() -> None:
    high, low = torch.full((2, 1, 3, 3), 2.0), torch.full((2, 1, 3, 3), -2.0)
    assert critic_loss(high, low) == 0
    assert critic_loss(low, high) == 3
    assert generator_loss(high) == -2


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_do_not_see_each_other(channels: int) -> None:
    critic = PatchDiscriminator(channels, 8)
    image = torch.rand(3, channels, 32, 32)
    assert torch.allclose(critic(image)[1:2], critic(image[1:2]), atol=1e-6)
