"""A quiet network is linear but for its last norm, and every weight still learns."""

import torch

from fewer.core.device import isolated_randomness
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.autoencoder.quiet_start import start_quietly
from tests.generate.autoencoder.conftest import tiny_config


def quiet() -> DCAutoencoder:
    with isolated_randomness(3):
        return start_quietly(DCAutoencoder(tiny_config("multi_head_multi_scale")))


@torch.no_grad()
def test_the_encoder_is_linear() -> None:
    encoder, picture = quiet().encoder, torch.randn(2, 3, 32, 32)
    zero = encoder(torch.zeros(1, 3, 32, 32))
    first, second = (encoder(part[None]) - zero for part in picture)
    both = encoder((picture[0] + 2 * picture[1])[None]) - zero
    assert torch.allclose(both, first + 2 * second, atol=1e-4)
    assert float(first.abs().mean()) > 1e-3


def test_after_two_steps_every_weight_has_moved() -> None:
    model = quiet()
    picture = torch.randn(2, 3, 32, 32)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model(picture) - picture).square().mean().backward()
        optimizer.step()
    still = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    assert not still
