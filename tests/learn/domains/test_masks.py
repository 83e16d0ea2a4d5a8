"""Mask algebra by hand-computed cases (spec 2.4 - 2.6)."""

import math

import pytest
import torch
from torch import nn

from fewer.core.errors import ConfigError
from fewer.learn.domains.masks import (
    apply_masks,
    best,
    clear_masked_state,
    density_of,
    exchange,
    exchange_fraction,
    kept_count,
    maskable_weights,
    pack_masks,
    preference,
    top_mask,
    unpack_masks,
)
from fewer.learn.networks import NetworkPlan, build_network


def test_only_convolutions_and_linear_layers_outside_the_head_are_masked() -> None:
    network = build_network(NetworkPlan(name="group-cnn", channels=3, classes=2, height=8, width=8))
    assert maskable_weights(network) == ("blocks.3.weight", "blocks.6.weight", "blocks.9.weight")
    assert maskable_weights(network, stem_dense=False)[0] == "blocks.0.weight"
    assert "blocks.2.weight" in maskable_weights(network, stem_dense=False, norms=True)
    single = nn.ModuleDict({"body": nn.Linear(3, 2), "classifier": nn.Linear(2, 2)})
    assert maskable_weights(single) == ("body.weight",)  # the only layer is not a stem
    with pytest.raises(ConfigError, match="no convolution"):
        maskable_weights(nn.ModuleDict({"classifier": nn.Linear(2, 2)}))


def test_ties_go_to_the_larger_weight_then_to_the_lower_position() -> None:
    score = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0])
    weight = torch.tensor([0.1, 0.2, -0.5, 0.1, 0.2])
    assert preference(score, weight).tolist() == [1, 4, 2, 0, 3]
    assert top_mask(score, weight, 3).tolist() == [False, True, True, False, True]


@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_picking_without_a_sort_is_the_order_of_preference(levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    score = torch.randint(levels, (5, 41), generator=generator).float()  # few levels: many ties
    weight = torch.randint(-2, 3, (5, 41), generator=generator).float()
    among = torch.rand(5, 41, generator=generator) < 0.6
    order = preference(score, weight)
    order = order[among.flatten()[order]]
    for count in (0, 1, 60, len(order) - 1, len(order)):
        expected = torch.zeros(5 * 41, dtype=torch.bool)
        expected[order[:count]] = True
        assert torch.equal(best(score, weight, among, count), expected.view(5, 41))


@pytest.mark.parametrize("count", [1, 5, 123])
@pytest.mark.parametrize("density", [0.1, 0.5, 0.6, 1.0])
def test_density_is_exact_to_one_weight(count: int, density: float) -> None:
    weight = torch.randn(count, generator=torch.Generator().manual_seed(0))
    kept = int(top_mask(weight.abs(), weight, kept_count(count, density)).sum())
    assert kept >= 1
    assert abs(kept / count - density) <= 1 / count


def test_the_exchange_fraction_is_the_cosine() -> None:
    assert exchange_fraction(0, 0.2, 600) == pytest.approx(0.2, abs=1e-12)
    assert exchange_fraction(300, 0.2, 600) == pytest.approx(0.1, abs=1e-12)
    for t in (80, 160, 560):
        expected = 0.3 / 2 * (1 + math.cos(math.pi * t / 600))
        assert abs(exchange_fraction(t, 0.3, 600) - expected) < 1e-6


def test_evil_s_update_by_hand_and_rigl_s_differs() -> None:
    weight = torch.tensor([[0.9, -0.1, 0.0], [0.4, 0.3, 0.0]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    domain = torch.tensor([[0.9, 0.8, 0.7], [0.1, 0.5, 0.2]])
    task = torch.tensor([[0.1, 0.2, 0.9], [0.3, 0.1, 0.0]])
    # p = floor(0.5 * 4) = 2: -0.1 and 0.3 leave; outside are (0,1), (0,2), (1,1), (1,2); of these the
    # least domain gradient have (1,2) with 0.2 and (1,1) with 0.5, the largest task gradient (0,2), (0,1).
    evil = exchange(mask, weight, weight.abs(), -domain, 0.5)
    assert evil.tolist() == [[True, False, False], [True, True, True]]
    rigl = exchange(mask, weight, weight.abs(), task, 0.5)
    assert rigl.tolist() == [[True, True, True], [True, False, False]]
    # Extended: the largest domain gradients leave, (0,0) and (0,1), although 0.9 is the largest weight.
    extended = exchange(mask, weight, -domain, -domain, 0.5)
    assert extended.tolist() == [[False, False, True], [True, True, True]]


def test_an_exchange_keeps_the_count_and_may_be_empty() -> None:
    generator = torch.Generator().manual_seed(1)
    for shape in ((1, 1), (5, 3), (4, 3, 3, 3)):
        weight, score = torch.randn(shape, generator=generator), torch.rand(shape, generator=generator)
        mask = top_mask(weight.abs(), weight, kept_count(weight.numel(), 0.6))
        for fraction in (0.0, 0.05, 0.3, 1.0):
            new = exchange(mask, weight * mask, weight.abs(), -score, fraction)
            assert int(new.sum()) == int(mask.sum())
        assert torch.equal(exchange(mask, weight, weight.abs(), -score, 0.0), mask)


def test_the_guard_leaves_every_channel_a_tenth() -> None:
    weight = torch.ones(2, 20)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[:, 10:] = False
    variance = torch.zeros(2, 20)
    variance[0, :10] = 1.0  # the whole first channel reacts to the domain
    guarded = exchange(mask, weight, -variance, -variance, 0.5, guard=True)
    assert int(guarded[0, :10].sum()) >= 1
    assert int(guarded.sum()) == 20
    free = exchange(mask, weight, -variance, -variance, 0.5)
    assert int(free[0, :10].sum()) == 0


def test_applying_and_clearing() -> None:
    network = nn.Sequential(nn.Linear(3, 2))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    masks = {"0.weight": torch.tensor([[True, False, True], [False, False, True]])}
    assert apply_masks(network, masks) is network
    clear_masked_state(optimizer, network, masks)
    dropped = ~masks["0.weight"]
    assert network[0].weight[dropped].abs().max() == 0
    for name in ("exp_avg", "exp_avg_sq"):
        moment = optimizer.state[network[0].weight][name]
        assert moment[dropped].abs().max() == 0
        assert moment[~dropped].abs().min() > 0
    with pytest.raises(ConfigError, match="fits no weight"):
        apply_masks(network, {"0.weight": torch.ones(1, 1, dtype=torch.bool)})


@pytest.mark.parametrize("shape", [(1,), (5, 3), (3, 41)])
def test_packing_keeps_every_bit(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.6
    packed = pack_masks({"layer": mask})
    assert packed["layer"].numel() == (mask.numel() + 7) // 8
    assert torch.equal(unpack_masks(packed)["layer"], mask)
    assert density_of({"layer": mask}) == pytest.approx(float(mask.float().mean()))
    with pytest.raises(ConfigError, match="do not hold"):
        unpack_masks({"layer": packed["layer"], "layer.shape": torch.tensor([99])})
