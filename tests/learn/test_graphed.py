import pytest
import torch
from torch import Tensor, nn

from fewer.learn.graphed import GraphedFunction, GraphedLoss

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


def loss(pictures: Tensor, parameters: dict[str, Tensor], rate: Tensor) -> Tensor:
    """Has a gradient of a gradient, as the matching losses have."""
    weight = parameters["w"].clone().requires_grad_()
    inner = (pictures @ weight).square().mean()
    (slope,) = torch.autograd.grad(inner, weight, create_graph=True)
    return (parameters["w"] - rate * slope).square().sum()


@pytest.mark.parametrize("device", DEVICES)
def test_loss_and_gradients_are_those_of_the_function(device: str) -> None:
    graphed = GraphedLoss(loss)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        pictures = torch.randn(5, 4, generator=generator).to(device).requires_grad_()
        weight = torch.randn(4, 3, generator=generator).to(device)
        rate = torch.rand((), generator=generator).to(device).requires_grad_()
        plain = loss(pictures, {"w": weight}, rate)
        wanted = torch.autograd.grad(plain, (pictures, rate))
        found = graphed(pictures, {"w": weight}, rate)
        torch.testing.assert_close(found, plain)
        (2 * found).backward()
        torch.testing.assert_close(pictures.grad, 2 * wanted[0])
        torch.testing.assert_close(rate.grad, 2 * wanted[1])


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_known_beforehand_flow_on(device: str) -> None:
    """What a replay returns is wired into the graph of what made its inputs (as a GPU call does it)."""
    graphed = GraphedLoss(loss)
    start = torch.randn(5, 4, device=device, requires_grad=True)
    weight, rate = torch.randn(4, 3, device=device), torch.tensor(0.1, device=device)
    (wanted,) = torch.autograd.grad(loss(start * 3, {"w": weight}, rate), start)
    value, gradients = graphed._with_gradients(start * 3, {"w": weight}, rate)
    from fewer.learn.graphed import _Known

    moved = start * 3
    _Known.apply(value, 1, moved, *gradients).backward()
    torch.testing.assert_close(start.grad, wanted)


@pytest.mark.parametrize("device", DEVICES)
def test_state_that_is_handed_back_goes_on(device: str) -> None:
    norm = nn.BatchNorm1d(3).to(device)

    def step(state: dict[str, Tensor], pictures: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            state["sum"].add_(norm(pictures).abs().sum() + pictures.mean())
        return state

    graphed = GraphedFunction(step, protects=list(norm.buffers()))
    state = {"sum": torch.zeros((), device=device)}
    wanted, twin = torch.zeros((), device=device), nn.BatchNorm1d(3).to(device)
    for number in range(4):
        pictures = torch.randn(6, 3, generator=torch.Generator().manual_seed(number)).to(device)
        state = graphed(state, pictures)
        wanted = wanted + twin(pictures).detach().abs().sum() + pictures.mean()
    torch.testing.assert_close(state["sum"], wanted)
    torch.testing.assert_close(norm.running_mean, twin.running_mean)
    assert int(norm.num_batches_tracked) == 4
