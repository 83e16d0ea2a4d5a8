"""LPIPS from a weight file: the distance of the definition, and refusals that name what is missing."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fewer.core.errors import FileError
from fewer.core.tensors import write_tensors
from fewer.generate.autoencoder.perceptual import LPIPS


def vgg_features() -> nn.Sequential:
    """torchvision's `vgg16().features`, written down from its published layer list."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def weights() -> tuple[nn.Sequential, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    features = vgg_features()
    tensors = {f"features.{name}": tensor for name, tensor in features.state_dict().items()}
    for head, width in enumerate((64, 128, 256, 512, 512)):
        tensors[f"lin{head}.model.1.weight"] = torch.rand(1, width, 1, 1)
    return features, tensors


def test_equal_to_the_definition(weights: tuple, tmp_path: Path) -> None:
    features, tensors = weights
    write_tensors(tmp_path / "lpips.safetensors", tensors)
    model = LPIPS.load(tmp_path / "lpips.safetensors")
    one, other = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    expected = 0.0
    x, y = (one - shift) / scale, (other - shift) / scale
    head = 0
    for index, layer in enumerate(features):
        x, y = layer(x), layer(y)
        if index in (3, 8, 15, 22, 29):
            unit = [z / (z.square().sum(1, keepdim=True).sqrt() + 1e-10) for z in (x, y)]
            weight = tensors[f"lin{head}.model.1.weight"]
            expected = expected + ((unit[0] - unit[1]).square() * weight[0]).sum(1).mean()
            head += 1
    assert torch.allclose(model(one, other), expected, rtol=1e-4)
    assert model(one, one) == 0


def test_gradient_reaches_the_picture_and_only_it(weights: tuple, tmp_path: Path) -> None:
    write_tensors(tmp_path / "lpips.safetensors", weights[1])
    model = LPIPS.load(tmp_path / "lpips.safetensors")
    image = torch.zeros(1, 3, 16, 16, requires_grad=True)
    model(image, torch.rand(1, 3, 16, 16)).backward()
    assert torch.isfinite(image.grad).all() and image.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_wrong_files_name_what_is_missing(weights: tuple, tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in weights[1].items() if name != "features.28.bias"}
    tensors["lin2.model.1.weight"] = torch.zeros(1, 5, 1, 1)
    write_tensors(tmp_path / "lpips.safetensors", tensors)
    with pytest.raises(FileError, match=r"lin2\.model\.1\.weight") as caught:
        LPIPS.load(tmp_path / "lpips.safetensors")
    assert "features.28.bias" in str(caught.value)
