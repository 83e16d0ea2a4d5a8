import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.parallel import ParallelPlan, parallelize
from fewer.parallel.own_group import own_group
from tests.fresh import run_as_torchrun
from tests.parallel.ranks import small_sana, steps_of


def test_a_process_alone_is_a_group_of_one_and_draws_the_same() -> None:
    model = small_sana()
    assert own_group(1).size == 1
    assert torch.allclose(steps_of(parallelize(model, ParallelPlan())), steps_of(model), atol=1e-6)


def test_more_devices_than_processes_say_how_to_start_them() -> None:
    with pytest.raises(ConfigError, match=r"torchrun --nproc-per-node 2.*run_on_devices"):
        parallelize(small_sana(), ParallelPlan(devices=2))


def draw_as_alone() -> None:
    model = small_sana()
    found = steps_of(parallelize(model, ParallelPlan(devices=2)))
    assert torch.allclose(found, steps_of(model), atol=1e-5)
    torch.distributed.destroy_process_group()


def test_a_torchrun_script_needs_no_group() -> None:
    run_as_torchrun(2, draw_as_alone)
