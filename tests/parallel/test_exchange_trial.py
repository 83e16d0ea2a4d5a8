"""The trial's collective side gives what one device gives; its other side needs GPUs."""

import pytest
import torch

from fewer.kernels.depthwise import depthwise_gated
from fewer.kernels.linear_attention import linear_attention
from fewer.parallel.exchange_trial import ExchangeTrial
from fewer.parallel.group import Group
from fewer.parallel.simulated import run_simulated


@pytest.mark.parametrize("size", [1, 3])
def test_collectives_of_the_trial_are_one_device(size: int) -> None:
    def rank_main(group: Group) -> tuple:
        trial = ExchangeTrial(group, torch.device("cpu"), 2, 8, 6)  # pyright: ignore[reportArgumentType]
        inputs = trial.draw()
        return inputs, trial.layer(None, inputs, 0), (trial.weight, trial.bias)

    ranks = run_simulated(size, rank_main)
    joint = torch.cat([inputs[0] for inputs, _, _ in ranks], dim=1)
    features = torch.cat([inputs[1] for inputs, _, _ in ranks], dim=1)
    for place, wanted in enumerate(
        (linear_attention(*joint.unbind(2)), depthwise_gated(features, *ranks[0][2]))
    ):
        found = torch.cat([results[place] for _, results, _ in ranks], dim=1)
        assert (found - wanted).float().norm() < 1e-2 * wanted.float().norm()
