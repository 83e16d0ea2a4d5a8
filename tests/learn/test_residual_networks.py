from dataclasses import replace

import torch

from fewer.core.modules import parameter_count
from fewer.learn.networks import NetworkPlan, build_network
from fewer.learn.residual_networks import ResNet18, WideResNet


def test_wrn_28_2_has_the_published_size() -> None:
    assert round(parameter_count(WideResNet(3, 10)) / 1e6, 2) == 1.47


def test_wrn_names_follow_the_common_checkpoints() -> None:
    names = set(WideResNet(3, 10).state_dict())
    assert {"conv1.weight", "block1.layer.0.convShortcut.weight", "block3.layer.3.bn2.running_mean"} <= names


def test_wrn_forward_on_odd_sizes() -> None:
    network = WideResNet(1, 7, depth=10, widen=1).eval()
    assert network(torch.randn(2, 1, 13, 9)).shape == (2, 7)
    assert network.features(torch.randn(2, 1, 13, 9)).shape == (2, 64)


def test_resnet_18_has_the_published_size_and_both_norms() -> None:
    # 11.17 M parameters: the usual count of the 3x3-stem variant for 10 classes.
    assert round(parameter_count(ResNet18(3, 10)) / 1e6, 2) == 11.17
    assert ResNet18(1, 3, "instance")(torch.randn(2, 1, 8, 8)).shape == (2, 3)


def test_resnet_18_halves_pictures_of_64_pixels_in_its_stem() -> None:
    plan = NetworkPlan(name="resnet-18", channels=3, classes=5, height=64, width=64)
    maps = build_network(plan).stem(torch.randn(1, 3, 64, 64))  # pyright: ignore
    small = build_network(replace(plan, height=32, width=32)).stem(torch.randn(1, 3, 32, 32))  # pyright: ignore
    assert maps.shape == small.shape == (1, 64, 32, 32)
