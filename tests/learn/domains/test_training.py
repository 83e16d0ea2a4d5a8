"""The loop's invariants after every step, the update by hand, and resuming at any step."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fewer.core.errors import DataError
from fewer.learn.domains.bases import DomainBatch
from fewer.learn.domains.masks import exchange, exchange_fraction
from fewer.learn.domains.plan import InvariantPlan
from fewer.learn.domains.training import MaskedTraining

PLAN = InvariantPlan(
    steps=40,
    warmup=6,
    delta=5,
    accumulation=3,
    exchange_end=22,
    density=0.6,
    alpha=0.5,
    stem_dense=False,
    rate=0.01,
    device="cpu",
    seed=1,
)


def run(training: MaskedTraining, toy, first: int, last: int) -> None:
    for step in range(first, last):
        training.step(toy.batch(step), torch.Generator().manual_seed(step))


@pytest.mark.parametrize("mode", ["faithful", "extended", "tmllab"])
@pytest.mark.parametrize("base", ["erm", "vrex", "sam", "mixup"])
def test_mask_algebra_after_every_step(mode: str, base: str, toy) -> None:
    network = toy.network()
    training = MaskedTraining(network, replace(PLAN, mode=mode, base=base), 2)  # pyright: ignore
    for step in range(40):
        training.step(toy.batch(step), torch.Generator().manual_seed(step))
        if step < 6:
            assert not training.masks
            continue
        mask = training.masks["hidden.weight"]
        assert int(mask.sum()) == 7  # round(0.6 * 12)
        assert network.hidden.weight[~mask].abs().max() == 0.0
        assert "classifier.weight" not in training.masks
        if mode != "tmllab":
            for name in ("exp_avg", "exp_avg_sq"):
                assert training.optimizer.state[network.hidden.weight][name][~mask].abs().max() == 0.0
    assert [update["step"] for update in training.updates] == [11, 16, 21, 26]
    for update in training.updates:
        assert abs(update["fraction"] - exchange_fraction(int(update["step"]) - 6, 0.5, 22)) < 1e-6


@pytest.mark.parametrize("method", ["evil", "rigl"])
def test_an_update_uses_the_mean_of_the_last_dense_gradients(method: str, toy) -> None:
    network = toy.network()
    training = MaskedTraining(network, replace(PLAN, method=method), 2)  # pyright: ignore
    run(training, toy, 0, 9)  # masked steps 3, 4, 5 are gathered, the update ends step 11
    gradients = []
    for step in (9, 10, 11):
        batch = toy.batch(step)
        network.zero_grad()
        features = network.features(batch.images)
        domain = F.cross_entropy(training.head(features), batch.domains)
        task = F.cross_entropy(network.classifier(features), batch.labels)
        gradients.append(torch.autograd.grad(domain if method == "evil" else task, network.hidden.weight)[0])
        mask_before = training.masks["hidden.weight"].clone()
        training.step(batch, torch.Generator().manual_seed(step))
    mean = torch.stack(gradients).mean(0).abs()
    assert (mean[~mask_before] != 0).any()  # dense: dropped weights have gradients too
    # The weights at the exchange: those just dropped by it are zero now, so take the optimizer's view.
    kept_before = _replayed_weights(toy, method)
    expected = exchange(
        mask_before,
        kept_before,
        kept_before.abs(),
        -mean if method == "evil" else mean,
        exchange_fraction(5, 0.5, 22),
    )
    assert torch.equal(training.masks["hidden.weight"], expected)


def _replayed_weights(toy, method: str) -> torch.Tensor:
    """The weights after step 11 had there been no exchange: the same run with the exchange put off."""
    network = toy.network()
    training = MaskedTraining(network, replace(PLAN, method=method, delta=20), 2)  # pyright: ignore
    run(training, toy, 0, 12)
    return network.hidden.weight.detach().clone()


def test_the_domain_head_never_moves_the_features(toy) -> None:
    runs = []
    for head in ("trained", "frozen"):
        network = toy.network()
        training = MaskedTraining(network, replace(PLAN, domain_head=head), 2)  # pyright: ignore
        before = training.head.weight.detach().clone()
        run(training, toy, 0, 8)  # before the first exchange
        runs.append(network.hidden.weight.detach().clone())
        assert torch.equal(before, training.head.weight) == (head == "frozen")
    assert torch.equal(runs[0], runs[1])


def test_dense_warm_up_is_plain_training(toy) -> None:
    weights = []
    for method in ("none", "evil", "rigl"):
        network = toy.network()
        run(MaskedTraining(network, replace(PLAN, method=method), 2), toy, 0, 6)  # pyright: ignore
        weights.append(network.hidden.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_fixed_masks_stay(toy) -> None:
    for method in ("random", "magnitude"):
        training = MaskedTraining(toy.network(), replace(PLAN, method=method), 2)  # pyright: ignore
        run(training, toy, 0, 30)
        assert torch.equal(training.masks["hidden.weight"], training.first_masks["hidden.weight"])


def test_the_released_code_s_random_mask_keeps_the_rest(toy) -> None:
    plan = replace(PLAN, mode="tmllab", first_mask="random")  # pyright: ignore[reportArgumentType]
    training = MaskedTraining(toy.network(), plan, 2)
    run(training, toy, 0, 7)
    assert int(training.masks["hidden.weight"].sum()) == 5  # round(0.4 * 12)


def test_one_source_domain_is_refused(toy) -> None:
    with pytest.raises(DataError, match="at least 2 are needed"):
        MaskedTraining(toy.network(), PLAN, 1)


def test_a_loss_that_is_not_finite_stops(toy) -> None:
    training = MaskedTraining(toy.network(), PLAN, 2)
    batch = toy.batch(0)
    batch.images[0, 0] = float("nan")
    with pytest.raises(DataError, match="at step 0"):
        training.step(batch, torch.Generator())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("base", ["erm", "vrex", "irm", "group-dro", "sam"])
@pytest.mark.parametrize("mode", ["faithful", "extended"])
def test_a_gpu_trains_the_same_network_and_masks(base: str, mode: str, toy) -> None:
    """On the GPU the gradients come from graphs that were recorded before the masks changed."""
    plan = replace(PLAN, base=base, mode=mode, dtype="fp32")  # pyright: ignore
    found = []
    for device in ("cpu", "cuda"):
        training = MaskedTraining(toy.network().to(device), plan, 2)
        for step in range(40):
            batch = toy.batch(step)
            moved = DomainBatch(batch.images.to(device), batch.labels.to(device), batch.sizes)
            training.step(moved, torch.Generator().manual_seed(step))
        found.append(training)
    torch.testing.assert_close(
        found[0].network.hidden.weight, found[1].network.hidden.weight.cpu(), rtol=1e-3, atol=1e-4
    )
    assert torch.equal(found[0].masks["hidden.weight"], found[1].masks["hidden.weight"].cpu())
    assert found[0].updates == found[1].updates
    assert bool(found[1].graphs) == (base != "sam")
