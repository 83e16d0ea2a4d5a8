from collections.abc import Callable

import pytest
import torch
from torch import nn

from fewer.core.errors import ConfigError, DataError, FewerError
from fewer.quantize import Rule, plan_layers, quantize
from fewer.quantize.plan_checks import check_plan

Tiny = tuple[nn.Module, torch.Tensor]
FIRST = "blocks.0.up"


def first(model: nn.Module) -> nn.Module:
    return model.get_submodule(FIRST)


def cast(dtype: torch.dtype) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        weight = first(model).weight.detach()
        first(model).weight = nn.Parameter((10 * weight).to(dtype), requires_grad=False)

    return change


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (cast(torch.float8_e4m3fn), ConfigError, "weight of layer 'blocks.0.up' is torch.float8_e4m3fn"),
        (lambda model: first(model).to("meta"), ConfigError, "meta device"),
        (lambda model: first(model).bias.data.fill_(torch.inf), DataError, "bias of layer 'blocks.0.up'"),
        (lambda model: first(model).weight.data.fill_(torch.nan), DataError, "weight of layer 'blocks.0.up'"),
    ],
)
def test_numbers_that_cannot_be_quantized_name_the_layer_and_change_nothing(
    tiny: Tiny, change: Callable[[nn.Module], None], error: type[FewerError], text: str
) -> None:
    model, _ = tiny
    change(model)
    with pytest.raises(error, match=text):
        quantize(model, "int4", 4)
    assert not any(type(child).__name__ == "QuantizedLinear" for child in model.modules())


def test_a_plan_of_another_model_is_refused(tiny: Tiny) -> None:
    model, _ = tiny
    plan = plan_layers(type(model)(blocks=3))
    with pytest.raises(ConfigError, match=r"'blocks\.2\.q_proj', but TinyModel has no such layer"):
        check_plan(model, plan, 4)
    with pytest.raises(ConfigError, match=r"'blocks\.0\.q_proj' is 64 x 64, \(128, 128\) by the plan"):
        check_plan(model, plan_layers(type(model)(dim=128)), 4)
    plan = plan_layers(model)
    quantize(model, "int4", 4, plan=plan)
    with pytest.raises(ConfigError, match=r"'blocks\.0\.q_proj', but TinyModel has a QuantizedLinear"):
        check_plan(model, plan, 4)


def test_groups_of_unequal_widths_and_unknown_blocks_are_refused(tiny: Tiny) -> None:
    model, _ = tiny
    plan = plan_layers(model, (Rule(r"blocks\.0\.(up|down)", group="mlp"),))
    with pytest.raises(ConfigError, match="'mlp' has layers of 64 and 128 inputs"):
        check_plan(model, plan, 4)
    plan = plan_layers(model, (Rule(r"blocks\.0\.up", block="attention"),))
    with pytest.raises(ConfigError, match="'attention', which TinyModel has not"):
        check_plan(model, plan, 4)


def test_a_rank_is_a_whole_number(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="whole number"):
        check_plan(tiny[0], plan_layers(tiny[0]), True)
