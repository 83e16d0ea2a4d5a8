import pytest
import torch
from torch import nn

from fewer.core.errors import ConfigError
from fewer.generate.conditional.layers import (
    ConditionAwareLayer,
    is_depthwise_3x3,
    per_sample,
    weight_shape,
)

LAYERS = {
    "linear": (lambda: nn.Linear(5, 3), (4, 2, 5)),
    "vector": (lambda: nn.Linear(5, 3, bias=False), (4, 5)),
    "patches": (lambda: nn.Conv2d(3, 8, 2, stride=2), (4, 3, 6, 4)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6), (4, 6, 5, 3)),
    "groups": (lambda: nn.Conv2d(6, 4, (3, 1), stride=(2, 1), padding=(0, 2), groups=2), (4, 6, 7, 3)),
    "around": (lambda: nn.Conv2d(2, 4, 3, padding=(2, 1), groups=2, padding_mode="circular"), (4, 2, 5, 6)),
    "apart": (lambda: nn.Conv2d(3, 4, 2, stride=2, dilation=2), (4, 3, 6, 6)),
    "dilated": (lambda: nn.Conv2d(2, 3, 3, padding=2, dilation=2, bias=False), (4, 2, 5, 5)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("form", ["split", "joined", "fused"])
def test_every_form_equals_a_loop_with_whole_weights(kind: str, form: str) -> None:
    torch.manual_seed(0)
    build, shape = LAYERS[kind]
    static = build().double()
    if form == "fused" and not is_depthwise_3x3(static):
        with pytest.raises(ConfigError, match="fused form"):
            ConditionAwareLayer(static, form)
        return
    layer = ConditionAwareLayer(static, form)
    features = torch.randn(shape).double().requires_grad_()
    layer.addition = torch.randn(4, *static.weight.shape).double().requires_grad_()
    result = layer(features)
    rows = []
    for i in range(4):
        whole = {
            "weight": static.weight + layer.addition[i],
            **({"bias": static.bias} if static.bias is not None else {}),
        }
        rows.append(torch.func.functional_call(static, whole, features[i : i + 1]))
    loop = torch.cat(rows)
    assert result.shape == loop.shape
    assert (result - loop).abs().max() < (1e-10 if form != "fused" else 1e-5)
    wanted = (features, layer.addition, static.weight)
    probe = torch.randn_like(loop)
    for one, other in zip(
        torch.autograd.grad((result * probe).sum(), wanted),
        torch.autograd.grad((loop * probe).sum(), wanted),
        strict=True,
    ):
        assert (one - other).norm() < 1e-5 * other.norm()


def test_low_precision_stays_what_it_is() -> None:
    layer = nn.Linear(4, 4).bfloat16()
    assert (
        per_sample(layer, torch.ones(2, 3, 4).bfloat16(), torch.ones(2, 4, 4).bfloat16()).dtype
        == torch.bfloat16
    )


def test_shapes_of_weights() -> None:
    assert weight_shape(nn.Conv2d(4, 6, 3, groups=2)) == (6, 2, 3, 3)
    assert weight_shape(nn.Bilinear(2, 3, 4)) is None
    assert weight_shape(nn.ReLU()) is None


def test_another_number_of_conditions_is_refused() -> None:
    layer = ConditionAwareLayer(nn.Linear(3, 2))
    layer.addition = torch.zeros(2, 2, 3)
    with pytest.raises(ConfigError, match="2 samples meet a batch of 5"):
        layer(torch.zeros(5, 3))
    with pytest.raises(ConfigError, match="no plain weight"):
        ConditionAwareLayer(nn.ReLU(), "joined")
