import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.recommend.training.losses import (
    draw_negatives,
    full_cross_entropy,
    gbce_beta,
    next_item_loss,
    sampled_softmax,
)


def world(rows: int = 5, items: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    encoded, table = torch.randn(rows, 4, generator=generator), torch.randn(items + 1, 4, generator=generator)
    return encoded, table, torch.randint(1, items + 1, (rows,), generator=generator)


def test_cross_entropy_is_the_log_share_of_the_target_and_ignores_padding() -> None:
    encoded, table, targets = world()
    wanted = -torch.log_softmax(encoded @ table[1:].T, 1)[range(5), targets - 1].mean()
    for filler in (0.0, 100.0):
        table[0] = filler
        torch.testing.assert_close(
            next_item_loss("cross-entropy", encoded, table, targets, torch.Generator()), wanted
        )


@pytest.mark.parametrize("rows", [1, 128, 300])
@pytest.mark.parametrize("large", [1.0, 300.0])
def test_chunked_cross_entropy_has_torch_s_value_and_gradients(rows: int, large: float) -> None:
    encoded, table, targets = world(rows, 41)
    encoded = large * encoded
    results = []
    for loss in (
        lambda e, t: torch.nn.functional.cross_entropy(e @ t.T, targets - 1),
        lambda e, t: full_cross_entropy(e, t, targets - 1),
    ):
        one, other = encoded.clone().requires_grad_(), table[1:].clone().requires_grad_()
        value = loss(one, other)
        (3 * value).backward()
        results.append((value.detach(), one.grad, other.grad))
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-6 * large, rtol=1e-5)


def test_cross_entropy_without_gradients_keeps_none() -> None:
    encoded, table, targets = world()
    assert not full_cross_entropy(encoded, table[1:], targets - 1).requires_grad


@pytest.mark.parametrize("name", ["binary", "bpr", "generalised-binary", "sampled-softmax"])
def test_every_loss_falls_when_the_target_scores_higher(name: str) -> None:
    encoded, _, targets = world()
    encoded, table = torch.zeros(5, 10), torch.eye(10)  # pushing one item moves no other
    losses = [
        next_item_loss(
            name, encoded + push * table[targets], table, targets, torch.Generator().manual_seed(1), 3
        )
        for push in (0.0, 1.0, 5.0)
    ]
    assert losses[0] > losses[1] > losses[2] >= 0


def test_negatives_never_are_the_target_and_cover_everything_else() -> None:
    drawn = draw_negatives(torch.tensor([1, 3, 5]), 5, 400, torch.Generator().manual_seed(0))
    assert [sorted(set(row.tolist())) for row in drawn] == [[2, 3, 4, 5], [1, 2, 4, 5], [1, 2, 3, 4]]


def test_sampled_softmax_approaches_the_full_one() -> None:
    encoded, table, targets = world(rows=40, items=50)
    full = next_item_loss("cross-entropy", encoded, table, targets, torch.Generator())
    generator = torch.Generator().manual_seed(0)
    sampled = torch.stack(
        [sampled_softmax(encoded, table, targets, generator, 2000) for _ in range(5)]
    ).mean()
    assert abs(float(sampled - full)) < 0.05


def test_gbce_limits() -> None:
    assert abs(gbce_beta(100, 101, 1.0) - 1.0) < 1e-9  # t = 1, all negatives: alpha = 1
    assert abs(gbce_beta(10, 101, 0.0) - 1.0) < 1e-9  # t = 0: plain cross-entropy on sampled negatives
    assert abs(gbce_beta(10, 101, 1.0) - 0.1) < 1e-9  # t = 1: beta = alpha


def test_senseless_requests() -> None:
    encoded, table, targets = world()
    with pytest.raises(ConfigError, match="allowed: cross-entropy"):
        next_item_loss("hinge", encoded, table, targets, torch.Generator())
    with pytest.raises(ConfigError, match="at least 2 items"):
        next_item_loss("bpr", encoded, table[:2], targets.clamp(max=1), torch.Generator())
