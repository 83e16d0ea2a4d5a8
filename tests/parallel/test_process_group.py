"""Acceptance A2: real processes with gloo."""

import pytest
import torch

from fewer.parallel.launch import RankPool, run_on_devices
from tests.parallel import ranks


def test_collectives_between_two_processes(pair: RankPool) -> None:
    answer = pair.call(ranks.collectives)
    assert answer == [[10.0, 12.0, 14.0], None, 10.0, [0.0, 1.0, 1.0], [0, 1], 3]


@pytest.mark.parametrize(("devices", "guidance"), [("trio", "batched"), ("pair", "split")])
def test_real_processes_equal_one_device_on_every_rank(
    devices: str, guidance: str, request: pytest.FixtureRequest
) -> None:
    result, alike = request.getfixturevalue(devices).call(ranks.denoise, "sync", guidance)
    expected = ranks.steps_of(ranks.small_sana())
    assert alike
    assert torch.allclose(torch.tensor(result), expected, rtol=1e-5, atol=1e-6)


def test_displaced_runs_with_asynchronous_exchange(pair: RankPool) -> None:
    result, alike = pair.call(ranks.denoise, "displaced", "batched")  # type: ignore[misc]
    expected = ranks.steps_of(ranks.small_sana())
    assert alike
    difference = (torch.tensor(result) - expected).norm() / expected.norm()
    assert 0 < difference < 0.1


def test_ranks_that_have_met_others_unequally_often_don_t_wait_for_each_other() -> None:
    said = run_on_devices(ranks.meetings, 3, device_type="cpu")
    refused = "its ranks have met others [2, 2, 1] "
    assert said == [str(["met", "met", refused])] * 2 + [str(["met", refused])]
