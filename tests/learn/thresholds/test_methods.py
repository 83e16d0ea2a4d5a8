from typing import get_args

import pytest
import torch
from torch import nn

from fewer.learn.few_labels.plan import MethodName, SemiSupervisedPlan
from fewer.learn.thresholds.batch import Batch
from fewer.learn.thresholds.methods import METHODS


def test_the_plan_and_the_dict_name_the_same_methods() -> None:
    assert set(get_args(MethodName)) == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_answers_for_every_image_with_a_finite_loss(
    name: str, network: nn.Module, batch: Batch
) -> None:
    method, plan = METHODS[name], SemiSupervisedPlan(method=name)  # pyright: ignore
    state = method.state(plan, 1, 3, 8)
    for _ in range(2):
        got = method.step(network, batch, state, plan)
    got.loss.backward()
    assert torch.isfinite(got.loss)
    for values in (got.weights, got.threshold, got.confidence, got.pseudo):
        assert values.shape == (4,)
    assert (got.weights >= 0).all()
    assert (got.weights <= 1).all()
