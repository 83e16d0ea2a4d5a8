import torch
from torch import nn

from fewer.generate.engine.layouts import lay_out


def test_the_layer_is_the_same_and_its_taps_are_apart() -> None:
    x = torch.randn(1, 6, 5, 4)
    for layer in (nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 1)):
        before, state = layer(x), layer.weight.clone()
        lay_out(layer)
        assert torch.equal(layer.weight, state) and (layer(x) - before).abs().max() < 1e-6
    depthwise = nn.Conv2d(6, 6, 3, groups=6)
    lay_out(depthwise)
    assert depthwise.weight[:, 0].flatten(1).t().is_contiguous()


def test_weights_of_inference_mode_stay() -> None:
    with torch.inference_mode():
        layer = nn.Conv2d(6, 6, 3, groups=6)
    layout = layer.weight.stride()
    lay_out(layer)
    assert layer.weight.stride() == layout
