"""Averaged weights: the average follows by its share, and batch norms measure what the average needs."""

import copy

import torch
from torch import nn

from fewer.learn.domains.averaged import follow, measure_statistics
from fewer.learn.group_network import GroupCNN
from fewer.learn.networks import SmallCNN


def test_the_average_keeps_its_share_and_takes_the_rest() -> None:
    network, smooth = nn.Linear(3, 2), nn.Linear(3, 2)
    expected = 0.75 * smooth.weight.detach() + 0.25 * network.weight.detach()
    follow(smooth, network, 0.75)
    assert torch.allclose(smooth.weight, expected)


def test_statistics_are_those_of_the_batches_under_the_present_weights() -> None:
    network = SmallCNN(3, 4)
    batches = [torch.randn(6, 3, 16, 16) + shift for shift in (0.0, 1.0, 2.0)]
    measure_statistics(network, batches)
    first, norm = network.blocks[0], network.blocks[1]
    assert isinstance(norm, nn.BatchNorm2d)
    maps = [first(batch) for batch in batches]
    assert torch.allclose(
        norm.running_mean, torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0), atol=1e-5
    )
    assert torch.allclose(norm.running_var, torch.stack([m.var((0, 2, 3)) for m in maps]).mean(0), rtol=1e-4)
    assert norm.momentum == 0.1
    assert not any(module.training for module in network.modules())
    again = copy.deepcopy(network.state_dict())
    measure_statistics(network, batches)  # nothing of earlier statistics is left over
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in again.items())


def test_a_network_without_batch_norms_is_left_alone() -> None:
    network = GroupCNN(3, 4)
    before = copy.deepcopy(network.state_dict())

    def unread():
        raise AssertionError("nothing needs to be drawn")
        yield

    measure_statistics(network, unread())
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())
    assert not network.training
