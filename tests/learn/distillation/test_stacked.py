import pytest
import torch

from fewer.learn.distillation.architectures import NETWORK_POOL, NetworkPlan, build_network
from fewer.learn.distillation.stacked import (
    class_gradients,
    embedding,
    fresh_parameters,
    gradients,
    logits,
    member,
    over_stack,
    stack,
    stack_size,
)


@pytest.fixture
def network() -> torch.nn.Module:
    return build_network(NetworkPlan(width=8, depth=2), 1, (8, 8), 3)


@pytest.mark.parametrize("name", NETWORK_POOL)
def test_fresh_parameters_fit_and_have_the_default_scale(name: str) -> None:
    network = build_network(NetworkPlan(name=name, width=16), 1, (16, 16), 3)
    parameters = fresh_parameters(network, torch.Generator().manual_seed(0))
    own = dict(network.named_parameters())
    assert {n: v.shape for n, v in parameters.items()} == {n: v.shape for n, v in own.items()}
    for key, value in parameters.items():
        if value.numel() > 2000:
            assert float(value.std()) == pytest.approx(float(own[key].detach().std()), rel=0.1)


def test_one_seed_is_one_network(network: torch.nn.Module) -> None:
    a, b, c = (fresh_parameters(network, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_functions_agree_with_the_module(network: torch.nn.Module) -> None:
    parameters = {name: value.detach() for name, value in network.named_parameters()}
    images, labels = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    torch.testing.assert_close(logits(network, parameters, images), network(images))
    torch.testing.assert_close(embedding(network, parameters, images), network.body(images))
    loss = torch.nn.functional.cross_entropy(network(images), labels)
    wanted = torch.autograd.grad(loss, list(network.parameters()))
    found = gradients(network, parameters, images, labels)
    for value, expected in zip(found.values(), wanted, strict=True):
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("soft", [False, True])
def test_vmap_and_loop_give_the_same_class_gradients(network: torch.nn.Module, soft: bool) -> None:
    parameters = fresh_parameters(network, torch.Generator().manual_seed(0))
    images = torch.randn(3, 4, 1, 8, 8)
    labels = torch.randn(3, 4, 3).softmax(2) if soft else torch.arange(3)[:, None].expand(3, 4)
    a = class_gradients(network, parameters, images, labels, batched=True)
    b = class_gradients(network, parameters, images, labels, batched=False)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-4)


def test_class_gradients_are_differentiable_in_the_pictures(network: torch.nn.Module) -> None:
    parameters = fresh_parameters(network, torch.Generator().manual_seed(0))
    images = torch.randn(3, 1, 1, 8, 8, requires_grad=True)
    for batched in (True, False):
        found = class_gradients(network, parameters, images, torch.arange(3)[:, None], batched=batched)
        (slope,) = torch.autograd.grad(sum(value.square().sum() for value in found.values()), images)
        assert slope.abs().sum() > 0


def test_a_stack_is_its_members(network: torch.nn.Module) -> None:
    each = [fresh_parameters(network, torch.Generator().manual_seed(seed)) for seed in range(3)]
    stacked = stack(each)
    assert stack_size(stacked) == 3
    assert all(torch.equal(member(stacked, 1)[name], each[1][name]) for name in stacked)
    images, labels = torch.randn(3, 5, 1, 8, 8), torch.randint(3, (3, 5))

    def one(parameters, pictures, targets):
        return gradients(network, parameters, pictures, targets)

    fast = over_stack(one, stacked, images, labels, batched=True)
    slow = over_stack(one, stacked, images, labels, batched=False)
    for name in fast:
        torch.testing.assert_close(fast[name], slow[name], atol=1e-6, rtol=1e-4)
