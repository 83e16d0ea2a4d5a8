from pathlib import Path

import pytest
import torch

from fewer.core.errors import FileError
from fewer.core.modules import parameter_count
from fewer.core.tensors import write_tensors
from fewer.learn.imagenet_networks import ImageNetResNet, freeze_norms, load_weights
from fewer.learn.networks import NetworkPlan, build_network


@pytest.mark.parametrize(("depth", "millions"), [(18, 11.69), (50, 25.56)])
def test_sizes_are_the_published_ones(depth: int, millions: float) -> None:
    with torch.device("meta"):
        network = ImageNetResNet(3, 1000, depth)
    assert round(parameter_count(network) / 1e6, 2) == millions


@pytest.mark.parametrize("depth", [18, 50])
def test_parity_with_torchvision(depth: int) -> None:
    models = pytest.importorskip("torchvision.models")
    theirs = getattr(models, f"resnet{depth}")(weights=None).eval()
    ours = ImageNetResNet(3, 1000, depth).eval()
    state = {name.replace("fc.", "classifier."): value for name, value in theirs.state_dict().items()}
    ours.load_state_dict(state)
    images = torch.randn(2, 3, 65, 96)
    torch.testing.assert_close(ours(images), theirs(images))


def test_weights_of_a_file_start_everything_but_the_head(tmp_path: Path) -> None:
    trained = ImageNetResNet(3, 1000, 18)
    state = {name.replace("classifier.", "fc."): value for name, value in trained.state_dict().items()}
    write_tensors(tmp_path / "w.safetensors", state)
    network = build_network(
        NetworkPlan(name="resnet-18-imagenet", channels=3, classes=7, height=64, width=64)
    )
    head = network.classifier.weight.clone()  # pyright: ignore
    load_weights(network, tmp_path / "w.safetensors")
    assert torch.equal(network.layer4[1].conv2.weight, trained.layer4[1].conv2.weight)  # pyright: ignore
    assert torch.equal(network.classifier.weight, head)  # pyright: ignore
    for change, message in (
        ({"layer1.0.conv1.weight": torch.zeros(3)}, "shape"),
        ({"surprise": torch.zeros(1)}, "does not know"),
        ({"bn1.weight": None}, "no tensor 'bn1.weight'"),
    ):
        bad = {name: value for name, value in {**state, **change}.items() if value is not None}
        write_tensors(tmp_path / "bad.safetensors", bad)
        with pytest.raises(FileError, match=message):
            load_weights(network, tmp_path / "bad.safetensors")


def test_frozen_norms_do_not_follow_the_batches() -> None:
    network = ImageNetResNet(3, 2, 18).train()
    freeze_norms(network)
    before = network.bn1.running_mean.clone()  # pyright: ignore
    network(torch.randn(2, 3, 64, 64)).sum().backward()
    assert torch.equal(network.bn1.running_mean, before)  # pyright: ignore
    assert network.bn1.weight.grad is not None
