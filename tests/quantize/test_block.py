import torch
from torch import nn

from fewer.quantize.block import block_loss
from fewer.quantize.calibrate import observe
from fewer.quantize.formats import FORMATS
from fewer.quantize.lowrank import Branch
from fewer.quantize.recipe import Recipe
from fewer.quantize.roles import Group


def test_the_loss_is_zero_for_the_exact_layer_grows_with_damage_and_restores_the_model(
    tiny: tuple[nn.Module, torch.Tensor],
) -> None:
    model, inputs = tiny
    group = Group("g", (("blocks.0.q_proj",),), block="blocks.0")
    calls = observe(model, [group], lambda: model(inputs), Recipe(), 10, 2**20).calls["blocks.0"]
    loss = block_loss(model, "blocks.0", calls, FORMATS["w4a16"])
    weight, scales = model.blocks[0].q_proj.weight.detach(), torch.rand(64) + 0.5
    zero = torch.zeros_like(weight)
    before = model.blocks[0].q_proj
    exact = loss({"blocks.0.q_proj": (zero, Branch(weight * scales, torch.eye(64)), scales)})
    damaged = [
        loss({"blocks.0.q_proj": (zero, Branch(factor * weight, torch.eye(64)), None)})
        for factor in (0.9, 0.5)
    ]
    assert exact < 1e-6 < damaged[0] < damaged[1]
    assert model.blocks[0].q_proj is before


def test_without_calls_or_block_there_is_no_block_loss(tiny: tuple[nn.Module, torch.Tensor]) -> None:
    assert block_loss(tiny[0], "", [], FORMATS["int4"]) is None
    assert block_loss(tiny[0], "blocks.0", [], FORMATS["int4"]) is None
