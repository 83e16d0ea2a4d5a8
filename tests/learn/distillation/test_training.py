import pytest
import torch

from fewer.learn.distillation.architectures import NetworkPlan, build_network
from fewer.learn.distillation.stacked import fresh_parameters, member
from fewer.learn.distillation.training import Recipe, descend, momentum_step, probabilities, train_networks
from tests.learn.distillation.conftest import make_pictures


@pytest.fixture
def setting():
    data = make_pictures(count=60)
    network = build_network(NetworkPlan(width=8, depth=2), 1, (8, 8), 3)
    return network, data.as_float() - 0.5, data.labels


def test_networks_learn_easy_pictures_from_hard_and_soft_labels(setting) -> None:
    network, images, labels = setting
    for targets in (labels, torch.nn.functional.one_hot(labels, 3).float()):
        stacked = train_networks(network, images, targets, Recipe(epochs=12, batch_size=30), (0, 1))
        answers = probabilities(network, stacked, images)
        assert answers.shape == (2, 60, 3)
        assert ((answers.argmax(2) == labels).float().mean(1) > 0.95).all()


def test_seeds_decide_and_networks_do_not_touch_each_other(setting) -> None:
    network, images, labels = setting
    both = train_networks(network, images, labels, Recipe(epochs=2), (3, 4))
    alone = train_networks(network, images, labels, Recipe(epochs=2), (4,))
    for name, value in member(both, 1).items():
        torch.testing.assert_close(value, member(alone, 0)[name], atol=1e-5, rtol=1e-4)


def test_momentum_step_is_torchs_sgd() -> None:
    ours = {"w": torch.randn(4, 3)}
    theirs = torch.nn.Parameter(ours["w"].clone())
    optimizer = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=5e-4)
    velocity = {"w": torch.zeros(4, 3)}
    for step in range(5):
        slope = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        theirs.grad = slope.clone()
        optimizer.step()
        momentum_step(ours, {"w": slope}, velocity, 0.1, 0.9, 5e-4)
    torch.testing.assert_close(ours["w"], theirs.data)


def test_balanced_drawing_helps_the_rare_class(setting) -> None:
    _network, _images, labels = setting
    kept = torch.cat([torch.nonzero(labels != 0).flatten(), torch.nonzero(labels == 0).flatten()[:1]])
    from fewer.learn.distillation.training import _order

    order = _order(labels[kept], Recipe(balanced=True), 3000, 0, 0)
    shares = torch.bincount(labels[kept][order], minlength=3) / 3000
    assert (shares - 1 / 3).abs().max() < 0.05
    plain = _order(labels[kept], Recipe(), 2 * len(kept), 0, 0)
    assert len(plain) == 2 * len(kept) or len(plain) == len(kept) + len(kept)


def test_descend_lowers_the_loss_and_leaves_its_input(setting) -> None:
    network, images, labels = setting
    start = fresh_parameters(network, torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in start.items()}
    moved = descend(network, start, images.expand(20, *images.shape), labels.expand(20, -1), 0.05)
    from fewer.learn.distillation.stacked import classification_loss, logits

    losses = [classification_loss(logits(network, one, images), labels) for one in (start, moved)]
    assert losses[1] < losses[0]
    assert all(torch.equal(start[name], before[name]) for name in start)
