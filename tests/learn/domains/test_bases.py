"""Each objective against its definition, written a second time."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F

from fewer.learn.domains.bases import (
    FISH_RATE,
    BaseState,
    base_gradients,
    coral_distance,
    domain_losses,
    fishr_penalty,
    irm_penalty,
    mmd_distance,
    penalty_at,
)
from fewer.learn.domains.plan import InvariantPlan

PLAN = InvariantPlan(method="none", steps=10, device="cpu")
BASES = ("erm", "irm", "vrex", "sam", "group-dro", "coral", "mmd", "mixup", "fish", "fishr", "and-mask")


def gradients(base: str, network: torch.nn.Module, batch, plan: InvariantPlan = PLAN, masks=None):
    network.zero_grad()
    state = BaseState(len(batch.sizes))
    result = base_gradients(
        network,
        batch,
        replace(plan, base=base),
        state,
        masks or {},
        0,
        torch.Generator().manual_seed(0),
        keep_graph=True,
    )
    return result, {n: p.grad.clone() for n, p in network.named_parameters()}, state


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("envs", [2, 3])
def test_every_base_gives_finite_gradients_and_leaves_the_weights(base: str, envs: int, toy) -> None:
    network, batch = toy.network(), toy.batch(0, envs=envs)
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    result, found, _ = gradients(base, network, batch)
    assert torch.isfinite(result.loss)
    assert all(torch.isfinite(g).all() for g in found.values())
    assert any(g.abs().sum() > 0 for g in found.values())
    assert all(torch.equal(before[n], p) for n, p in network.named_parameters())
    if result.features is not None:  # domain gradients can be taken from the graph that was kept
        grad = torch.autograd.grad(result.features.sum(), network.hidden.weight)[0]
        assert grad.abs().sum() > 0


def test_erm_is_cross_entropy_over_the_union(toy) -> None:
    network, batch = toy.network(), toy.batch(1)
    result, found, _ = gradients("erm", network, batch)
    network.zero_grad()
    loss = F.cross_entropy(network(batch.images), batch.labels)
    loss.backward()
    assert torch.equal(result.loss, loss.detach())
    assert torch.equal(found["hidden.weight"], network.hidden.weight.grad)
    assert torch.allclose(domain_losses(network(batch.images), batch).mean(), loss)


def test_vrex_adds_the_variance_of_the_losses(toy) -> None:
    network, batch = toy.network(), toy.batch(2, envs=3)
    result, _, _ = gradients("vrex", network, batch, replace(PLAN, penalty=10.0, penalty_from=0))
    losses = domain_losses(network(batch.images), batch).detach()
    assert torch.allclose(result.loss, losses.mean() + 10 * losses.var(correction=0))


def test_the_irm_penalty_is_the_squared_gradient_when_both_halves_agree(toy) -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, 0)
    labels = torch.tensor([0, 1, 2, 0]).repeat_interleave(2)
    scale = torch.ones((), requires_grad=True)
    gradient = torch.autograd.grad(F.cross_entropy(logits * scale, labels), scale)[0]
    assert torch.allclose(irm_penalty(logits, labels), gradient**2, atol=1e-6)


def test_group_dro_weights_the_worse_domain_more(toy) -> None:
    network, batch = toy.network(), toy.batch(3)
    losses = domain_losses(network(batch.images), batch).detach()
    result, _, state = gradients("group-dro", network, batch)
    expected = (0.01 * losses).exp() / (0.01 * losses).exp().sum()
    assert torch.allclose(state.group_weights, expected)
    assert torch.allclose(result.loss, (expected * losses).sum())


def test_coral_and_mmd_are_distances(toy) -> None:
    generator = torch.Generator().manual_seed(1)
    one, two = torch.randn(7, 3, generator=generator), torch.randn(5, 3, generator=generator) + 2
    means = (one.mean(0) - two.mean(0)).square().mean()
    covariances = (torch.cov(one.T) - torch.cov(two.T)).square().mean()
    assert torch.allclose(coral_distance(one, two), means + covariances, atol=1e-5)
    for distance in (coral_distance, mmd_distance):
        assert float(distance(one, one)) == pytest.approx(0.0, abs=1e-5)
        assert float(distance(one, two)) > 0.1
    batch = toy.batch(4, envs=3)
    network = toy.network()
    features = network.features(batch.images).detach()
    pairs = [coral_distance(a, b) for a, b in combinations(features.split(batch.sizes), 2)]
    result, _, _ = gradients("coral", network, batch)
    base = domain_losses(network(batch.images), batch).mean()
    assert torch.allclose(result.loss, base + torch.stack(pairs).mean())


def test_fishr_s_per_picture_gradients_are_autograd_s(toy) -> None:
    network, batch = toy.network(), toy.batch(5, each=3)
    rows = []
    for image, label in zip(batch.images, batch.labels, strict=True):
        logits = network.classifier(network.features(image[None]).detach())
        loss = F.cross_entropy(logits, label[None])
        parts = torch.autograd.grad(loss, [network.classifier.weight, network.classifier.bias])
        rows.append(torch.cat([part.flatten() for part in parts]))
    variances = torch.stack([part.var(0, correction=0) for part in torch.stack(rows).split(batch.sizes)])
    expected = (variances - variances.mean(0)).square().mean()
    features = network.features(batch.images)
    assert torch.allclose(fishr_penalty(features, network.classifier(features), batch), expected, atol=1e-7)


def test_and_mask_drops_what_the_domains_disagree_about(toy) -> None:
    network, batch = toy.network(), toy.batch(6)
    losses = domain_losses(network(batch.images), batch)
    one, two = (torch.autograd.grad(loss, network.hidden.weight, retain_graph=True)[0] for loss in losses)
    _, found, _ = gradients("and-mask", network, batch)
    agree = one.sign() == two.sign()
    assert (found["hidden.weight"][~agree] == 0).all()
    assert torch.allclose(found["hidden.weight"][agree], ((one + two) / 2 / agree.float().mean())[agree])


def test_fish_is_the_mean_gradient_less_the_slope_of_the_inner_product(toy) -> None:
    network, batch = toy.network().double(), toy.batch(8)
    batch = replace(batch, images=batch.images.double())
    weights = list(network.parameters())
    losses = domain_losses(network(batch.images), batch)
    one, two = (torch.autograd.grad(loss, weights, create_graph=True) for loss in losses)
    product = torch.stack([(a * b).sum() for a, b in zip(one, two, strict=True)]).sum()
    slope = torch.autograd.grad(product, weights)
    found = [
        gradients_of_fish(network, batch, seed)
        for seed in range(8)  # both orders of the domains, the same number of times or nearly so
    ]
    orders = {tuple(round(float(x), 9) for x in one_order[0].flatten()): one_order for one_order in found}
    assert len(orders) == 2
    both = [torch.stack(parts).mean(0) for parts in zip(*orders.values(), strict=True)]
    for got, a, b, s in zip(both, one, two, slope, strict=True):
        expected = (a + b).detach() / 2 - FISH_RATE / 4 * s
        assert torch.allclose(got, expected, atol=FISH_RATE**2)
        assert not torch.allclose((a + b).detach() / 2, expected, atol=1e-9)


def gradients_of_fish(network: torch.nn.Module, batch, seed: int) -> list[torch.Tensor]:
    plan = replace(PLAN, base="fish")
    generator = torch.Generator().manual_seed(seed)
    base_gradients(network, batch, plan, BaseState(2), {}, 0, generator)
    return [p.grad.clone() for p in network.parameters()]


def test_fish_leaves_masked_weights_where_they_are(toy) -> None:
    network, batch = toy.network(), toy.batch(9)
    mask = torch.tensor([[True, False, True, False]] * 3)
    _, found, _ = gradients("fish", network, batch, PLAN, {"hidden.weight": mask})
    assert (found["hidden.weight"][~mask] == 0).all()
    assert (found["hidden.weight"][mask] != 0).any()


def test_sam_climbs_only_on_kept_weights(toy) -> None:
    network, batch = toy.network(), toy.batch(7)
    _, erm, _ = gradients("erm", network, batch)
    norm = torch.cat([g.flatten() for n, g in erm.items() if not n.startswith("classifier")]).norm()
    mask = torch.tensor([[True, False, True, False]] * 3)
    moved = toy.network()
    with torch.no_grad():
        moved.hidden.weight += 0.05 / norm * erm["hidden.weight"] * mask
        moved.hidden.bias += 0.05 / norm * erm["hidden.bias"]
    F.cross_entropy(moved(batch.images), batch.labels).backward()
    masked = replace(PLAN, method="evil")
    _, found, _ = gradients("sam", network, batch, masked, {"hidden.weight": mask})
    assert torch.allclose(found["hidden.weight"], moved.hidden.weight.grad, atol=1e-6)
    # Under a mask method SAM does not climb before there is a mask.
    _, before, _ = gradients("sam", network, batch, masked)
    assert torch.equal(before["hidden.weight"], erm["hidden.weight"])


def test_penalties_start_late_without_a_mask_only() -> None:
    irm = replace(PLAN, base="irm", steps=5001)
    assert [penalty_at(irm, step) for step in (0, 499, 500)] == [1.0, 1.0, 100.0]
    assert [penalty_at(replace(irm, steps=20_000), step) for step in (499, 500)] == [1.0, 100.0]
    fishr = replace(irm, base="fishr")
    assert [penalty_at(fishr, step) for step in (0, 1499, 1500)] == [0.0, 0.0, 1000.0]
    assert penalty_at(replace(irm, method="evil"), 0) == 1.0
    assert penalty_at(replace(PLAN, base="vrex", method="evil"), 0) == 10.0
    assert penalty_at(replace(irm, penalty=7.0, penalty_from=3), 3) == 7.0


def test_penalties_start_in_short_runs_too() -> None:
    """At a tenth of a run of 300 steps: a run that ends before the penalty sets in is plain ERM."""
    irm = replace(PLAN, base="irm", steps=300)
    assert [penalty_at(irm, step) for step in (29, 30, 299)] == [1.0, 100.0, 100.0]
    assert [penalty_at(replace(irm, base="fishr"), step) for step in (89, 90)] == [0.0, 1000.0]
