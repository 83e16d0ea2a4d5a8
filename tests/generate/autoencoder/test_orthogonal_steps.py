"""Orthogonal steps turn no direction and stretch all alike; what is no matrix takes AdamW's step."""

import pytest
import torch
from torch import nn

from fewer.core.checkpoint import flatten_state, unflatten_state
from fewer.generate.autoencoder.orthogonal_steps import Muon, is_matrix, orthogonal


@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (16, 16), (123, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    start = torch.randn(2, *shape, dtype=dtype) * 1e-3
    found = orthogonal(start)
    assert found.dtype == dtype
    values = torch.linalg.svdvals(found)
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3
    u, _, v = torch.linalg.svd(start, full_matrices=False)
    # In the basis of the start's singular vectors the result is diagonal.
    rotated = u.mT @ found @ v.mT
    rest = rotated - torch.diag_embed(rotated.diagonal(dim1=1, dim2=2))
    assert float(rest.abs().max()) < 1e-3
    assert torch.equal(orthogonal(torch.zeros(1, *shape)), torch.zeros(1, *shape))


def test_steps_of_matrices_are_as_long_as_adamws_usual_ones() -> None:
    torch.manual_seed(0)
    for shape in ((8, 4, 3, 3), (64, 16), (16, 64)):
        weight = nn.Parameter(torch.zeros(shape))
        weight.grad = torch.randn(shape)
        Muon([weight], lr=0.01).step()
        assert 0.1 < float(weight.detach().square().mean().sqrt()) / 0.01 < 0.3


@pytest.mark.parametrize("shape", [(7,), (32, 1, 3, 3), (3, 64), (1, 1)])
def test_the_rest_steps_as_torchs_adamw(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    start = torch.randn(shape)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    assert not is_matrix(ours)
    settings = {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1}
    two = Muon([ours], **settings), torch.optim.AdamW([theirs], **settings)
    for _ in range(5):
        gradient = torch.randn(shape)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in two:
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_linear_autoencoder_comes_nearer_to_principal_components_than_with_adamw() -> None:
    def excess(kind: type, seed: int) -> float:
        """Squared error over that of principal components, less one."""
        torch.manual_seed(seed)
        basis = torch.linalg.qr(torch.randn(32, 32))[0]
        data = torch.randn(512, 32) * torch.logspace(0, -1.5, 32) @ basis
        net = nn.Sequential(nn.Linear(32, 8, bias=False), nn.Linear(8, 32, bias=False))
        optimizer = kind(net.parameters(), lr=0.05, weight_decay=0.0)
        for step in range(100):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 100)
            optimizer.zero_grad()
            error = (net(data) - data).square().sum()
            error.backward()
            optimizer.step()
        return float(error.detach() / torch.linalg.svdvals(data)[8:].square().sum()) - 1

    ours, adamw = ([excess(kind, seed) for seed in range(3)] for kind in (Muon, torch.optim.AdamW))
    assert sum(ours) < 0.5 * sum(adamw) and max(ours) < 0.02


def test_saved_and_restored_it_goes_on_bit_for_bit() -> None:
    def steps(optimizer: Muon, weights: list[nn.Parameter], first: int, count: int) -> None:
        for number in range(first, first + count):
            for weight in weights:
                generator = torch.Generator().manual_seed(number)
                weight.grad = torch.randn(weight.shape, generator=generator)
            optimizer.step()

    def fresh() -> tuple[Muon, list[nn.Parameter]]:
        weights = [nn.Parameter(torch.ones(6, 12)), nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(2))]
        weights[2].requires_grad_(False)
        return Muon(weights, lr=0.1, weight_decay=0.1), weights

    whole, expected = fresh()
    steps(whole, expected[:2], 0, 4)
    first, weights = fresh()
    steps(first, weights[:2], 0, 2)
    tensors, rest = flatten_state(first.state_dict(), "optimizer")
    again, restored = fresh()
    for new, old in zip(restored, weights, strict=True):
        new.data.copy_(old.data)
    again.load_state_dict(unflatten_state(tensors, rest, "optimizer"))
    steps(again, restored[:2], 2, 2)
    assert all(torch.equal(a, b) for a, b in zip(restored, expected, strict=True))
    assert torch.equal(restored[2], torch.ones(2))  # never had a gradient
