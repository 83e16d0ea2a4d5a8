"""Generators leave a network and come back as they were; whatever does not fit is named."""

import pytest
import torch

from fewer.core.errors import FileError
from fewer.core.tensors import TensorInfo
from fewer.generate.conditional.for_sana import condition_sana
from fewer.generate.conditional.generator_files import (
    check_generators,
    fill_generators,
    generator_tensors,
    plan_facts,
    read_plan,
)
from fewer.generate.conditional.targets import ConditionPlan
from tests.generate.conditional.conftest import randomise, tiny_sana

PLANS = (ConditionPlan(rank=2), ConditionPlan(rank=None), ConditionPlan(kind="aks", kernels=3))


@pytest.mark.parametrize("plan", PLANS)
def test_plan_and_tensors_come_back(plan: ConditionPlan) -> None:
    assert read_plan(plan_facts(plan), "file") == plan
    model, other = (condition_sana(tiny_sana(), plan) for _ in range(2))
    randomise(model.can)
    kept = {name: tensor.clone() for name, tensor in generator_tensors(model).items()}
    fill_generators(other, kept)
    found = generator_tensors(other)
    assert found.keys() == kept.keys() and all(torch.equal(found[name], kept[name]) for name in kept)


def test_what_does_not_fit_is_named() -> None:
    tensors = generator_tensors(condition_sana(tiny_sana(), PLANS[0]))
    found = {name: TensorInfo("F32", tuple(tensor.shape)) for name, tensor in tensors.items()}
    base = tiny_sana()

    def check(changes: dict[str, TensorInfo], plan: ConditionPlan = PLANS[0]) -> None:
        check_generators(base, plan, base.params.width, found | changes, "styles")

    check({})
    with pytest.raises(FileError, match=r"'styles' does not fit .*can\.other"):
        check({"can.other": TensorInfo("F32", (1,))})
    with pytest.raises(FileError, match=r"can\.patch_embed\.a\.bias"):
        check({"can.patch_embed.a.bias": TensorInfo("F32", (7,))})
    with pytest.raises(FileError, match=r"does not fit"):
        check({}, ConditionPlan(rank=4096))
    assert base.state_dict().keys() == tiny_sana().state_dict().keys()
    facts = plan_facts(PLANS[0])
    for broken in ({"rank": "two"}, {"kind": "other"}, {"targets": "everything"}):
        with pytest.raises(FileError, match="damaged facts"):
            read_plan(facts | broken, "styles")
    del facts["targets"]
    with pytest.raises(FileError, match="damaged facts"):
        read_plan(facts, "styles")
