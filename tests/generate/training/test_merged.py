"""Low-rank factors behind a plain network's weights."""

import pytest
import torch
from torch import nn

from fewer.core.errors import ConfigError
from fewer.generate.lora import attach
from fewer.generate.training.merged import MergedFactors


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, 3))


def _moved(network: nn.Module) -> MergedFactors:
    factors = MergedFactors(network, 2, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for up in factors.ups.values():
            up.normal_(generator=torch.Generator().manual_seed(2))
    factors.merge()
    return factors


def test_new_factors_change_nothing() -> None:
    network, plain = _network(), _network()
    MergedFactors(network, 2, torch.Generator().manual_seed(1)).merge()
    x = torch.randn(4, 6)
    assert torch.equal(network(x), plain(x))


def test_the_gradient_is_that_of_the_adapter() -> None:
    network = _network()
    factors = _moved(network)
    x = torch.randn(4, 6)
    loss = factors.through(network(x).square().mean())
    loss.backward()
    plain = attach(_network(), factors.adapter(), name="oracle")
    expected = plain(x).square().mean()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(factors.downs["0"].grad, plain[0].downs["oracle"].grad)
    torch.testing.assert_close(factors.ups["2"].grad, plain[2].ups["oracle"].grad)


def test_a_network_without_linear_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="no linear layer"):
        MergedFactors(nn.Sequential(nn.SiLU()), 2, torch.Generator())
