import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.parallel.attach import parallelize, structural_copy
from fewer.parallel.plan import ParallelPlan
from fewer.parallel.simulated import run_simulated


def test_a_structural_copy_shares_tensors_and_nothing_else() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    copied = structural_copy(module)
    assert [id(t) for t in copied.parameters()] == [id(t) for t in module.parameters()]
    assert [id(t) for t in copied.buffers()] == [id(t) for t in module.buffers()]
    copied[0] = torch.nn.Identity()
    assert isinstance(module[0], torch.nn.Linear)


def test_unknown_models_and_wrong_counts_are_refused() -> None:
    linear = torch.nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ConfigError, match="Linear cannot be spread"):
        run_simulated(2, lambda group: parallelize(linear, ParallelPlan(devices=2), group))
    with pytest.raises(ConfigError, match="for 3 devices, the group has 2"):
        run_simulated(2, lambda group: parallelize(linear, ParallelPlan(devices=3), group))
