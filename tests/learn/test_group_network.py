import pytest
import torch

from fewer.learn.networks import NetworkPlan, build_network


@pytest.mark.parametrize(("channels", "side"), [(1, 5), (3, 32)])
def test_shapes_and_independence_of_the_batch(channels: int, side: int) -> None:
    network = build_network(
        NetworkPlan(name="group-cnn", channels=channels, classes=7, height=side, width=side)
    )
    images = torch.randn(5, channels, side, side, generator=torch.Generator().manual_seed(0))
    assert network.features(images).shape == (5, 128)
    assert network(images).shape == (5, 7)
    # Group normalisation: a picture's answer does not depend on its neighbours.
    assert torch.allclose(network(images)[:1], network(images[:1]), atol=1e-5)
