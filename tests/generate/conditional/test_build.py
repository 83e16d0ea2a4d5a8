import torch

from fewer.generate.conditional.build import build, params_of, plan_of
from fewer.generate.conditional.targets import ConditionPlan
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


def test_class_and_time_start_alike_in_the_condition() -> None:
    for shape in SHAPES.values():
        model = build(shape, None, 0)
        labels, times = torch.arange(3) % shape.classes, torch.tensor([100.0, 500.0, 900.0])
        by_class = model.condition(times[:1].expand(3), labels).std(0).mean()
        by_time = model.condition(times, labels[:1].expand(3)).std(0).mean()
        assert 0.2 < by_class / by_time < 20
