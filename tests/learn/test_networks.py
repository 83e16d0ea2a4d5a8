import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.core.modules import parameter_count
from fewer.learn.networks import ConvNet, NetworkPlan, build_network


@pytest.mark.parametrize("name", ["small-cnn", "convnet-3", "mlp"])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 9, 17)])
def test_shapes_and_features(name: str, channels: int, height: int, width: int) -> None:
    plan = NetworkPlan(name=name, channels=channels, classes=5, height=height, width=width)  # pyright: ignore
    network = build_network(plan).eval()
    images = torch.randn(3, channels, height, width)
    assert network(images).shape == (3, 5)
    torch.testing.assert_close(network.classifier(network.features(images)), network(images))


def test_seed_decides_the_weights_and_leaves_the_global_state_alone() -> None:
    before = torch.random.get_rng_state()
    first, same, other = (build_network(NetworkPlan(), seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_grey_28_pixel_picture_becomes_2048_features() -> None:
    network = ConvNet(1, 10, (28, 28))
    assert network.features(torch.zeros(1, 1, 28, 28)).shape == (1, 2048)


@pytest.mark.parametrize("norm", ["instance", "batch", "layer", "group", "none"])
@pytest.mark.parametrize("pooling", ["average", "max", "none"])
def test_convnet_variants(norm: str, pooling: str) -> None:
    network = ConvNet(3, 4, (8, 8), 8, 2, norm=norm, activation="leaky", pooling=pooling)  # pyright: ignore
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 4)


def test_too_small_pictures_are_refused() -> None:
    with pytest.raises(ConfigError, match="too small"):
        ConvNet(3, 10, (4, 4), depth=3)


def test_small_cnn_is_small() -> None:
    assert 80_000 < parameter_count(build_network(NetworkPlan(name="small-cnn"))) < 110_000
