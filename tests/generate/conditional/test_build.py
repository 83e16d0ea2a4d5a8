import torch

from fewer.generate.conditional.build import build, params_of, plan_of
from fewer.generate.conditional.condition import ConditionPlan
from tests.generate.conditional.conftest import SHAPES


def test_the_same_seed_gives_the_same_static_weights_with_and_without_generators(batch: tuple) -> None:
    plan = ConditionPlan(rank=2)
    static, can = build(SHAPES["cat tokens"], None, 4), build(SHAPES["cat tokens"], plan, 4)
    assert torch.equal(static(*batch), can(*batch))
    assert not static.final_layer.linear.weight.any()  # velocity starts at zero
    assert plan_of(can) == plan and plan_of(static) is None
    assert params_of(can) == params_of(static) == SHAPES["cat tokens"]
    other = build(SHAPES["cat tokens"], None, 5)
    assert not torch.equal(other.patch_embed.proj.weight, static.patch_embed.proj.weight)
