import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from fewer.learn.distillation.gradient import gradient_distance, gradient_matching, lessons
from fewer.learn.distillation.plan import resolve
from fewer.learn.distillation.start import starting_set
from fewer.learn.distillation.task import Task
from tests.learn.distillation.conftest import make_pictures, tiny_plan

UNITS = 7 + 5


def gradient(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv": torch.randn(7, 3, 3, 3, generator=generator),
        "linear": torch.randn(5, 11, generator=generator),
        "bias": torch.randn(5, generator=generator),
    }


def test_a_gradient_is_at_no_distance_from_itself() -> None:
    assert float(gradient_distance(gradient(), gradient())) <= 1e-5 * UNITS


def test_the_opposite_gradient_is_two_away_in_every_unit() -> None:
    opposite = {name: -value for name, value in gradient().items()}
    assert float(gradient_distance(gradient(), opposite)) == pytest.approx(2 * UNITS, abs=1e-4)


@pytest.mark.parametrize("kind", ["units", "cosine"])
def test_lengths_do_not_matter(kind: str) -> None:
    longer = {name: 37.0 * value for name, value in gradient(1).items()}
    a, b = (gradient_distance(gradient(), other, kind) for other in (gradient(1), longer))
    assert float(a) == pytest.approx(float(b), rel=1e-4)


def test_biases_and_norms_are_left_out() -> None:
    other = {**gradient(), "bias": -gradient()["bias"]}
    for kind in ("units", "cosine", "squares"):
        assert float(gradient_distance(gradient(), other, kind)) <= 1e-5 * UNITS


def test_a_leading_axis_is_summed() -> None:
    both = {name: torch.stack([value, gradient(1)[name]]) for name, value in gradient().items()}
    target = {name: torch.stack([gradient(2)[name]] * 2) for name in both}
    for kind in ("units", "cosine", "squares"):
        each = gradient_distance(gradient(), gradient(2), kind) + gradient_distance(
            gradient(1), gradient(2), kind
        )
        torch.testing.assert_close(
            gradient_distance(both, target, kind, leading=1), each, rtol=1e-5, atol=1e-5
        )


def test_dead_units_have_a_finite_slope() -> None:
    zero = torch.zeros(4, 3, requires_grad=True)
    gradient_distance({"w": zero}, {"w": torch.randn(4, 3)}).backward()
    assert torch.isfinite(zero.grad).all()


@pytest.mark.parametrize("method", ["dc", "dsa", "idc"])
def test_the_real_pictures_themselves_match_best(method: str) -> None:
    data = make_pictures(count=24)
    plan = resolve(tiny_plan(method, images_per_class=8, real_batch=8, start="real", factor=1), ())
    task = Task.of(data, plan, torch.device("cpu"))
    synthetic = starting_set(task)
    losses = []
    for loss in gradient_matching(task, synthetic, 0):
        losses.append(float(loss))
    assert len(losses) == plan.outer_steps
    synthetic.images = torch.randn_like(synthetic.images)
    noise = float(next(gradient_matching(task, synthetic, 0)))
    assert losses[0] < 1e-3 < noise


def plain_iteration(task: Task, images: torch.Tensor, rate: float) -> tuple[list[float], torch.Tensor]:
    """DC's public loop with a module, autograd and torch's optimizers: its losses and the moved pictures."""
    source, plan = task.source, task.plan
    network = copy.deepcopy(task.network)
    network.load_state_dict(task.fresh_network(0))
    weights = list(network.parameters())
    images = images.clone().requires_grad_()
    pictures, descent = torch.optim.SGD([images], lr=rate), torch.optim.SGD(weights, lr=0.01)
    each, found = len(images) // source.classes, []
    targets = torch.arange(source.classes).repeat_interleave(each)
    for outer in range(plan.outer_steps):
        real = source.sample(plan.real_batch, task.generator(0, outer))
        loss = torch.zeros(())
        for label in range(source.classes):
            sides = real[label], images[label * each : (label + 1) * each]
            losses = [cross_entropy(network(one), torch.full((len(one),), label)) for one in sides]
            theirs = torch.autograd.grad(losses[0], weights)
            ours = torch.autograd.grad(losses[1], weights, create_graph=True)
            for a, b in zip(ours, theirs, strict=True):
                if a.ndim > 1:
                    a, b = a.flatten(1), b.flatten(1)
                    lengths = a.norm(dim=1) * b.norm(dim=1)
                    loss = loss + (1 - (a * b).sum(1) / (lengths + 1e-6)).sum()
        pictures.zero_grad()
        loss.backward()
        pictures.step()
        found.append(float(loss.detach()))
        for _ in range(plan.inner_steps):
            descent.zero_grad()
            cross_entropy(network(images.detach()), targets).backward()
            descent.step()
    return found, images.detach()


def test_an_iteration_is_that_of_the_public_loop() -> None:
    """Losses and pictures over three matchings, with the network learning the set between them."""
    plan = resolve(tiny_plan("dc", outer_steps=3, inner_steps=4), ())
    task = Task.of(make_pictures(count=30), plan, torch.device("cpu"))
    synthetic = starting_set(task)
    wanted, moved = plain_iteration(task, synthetic.images, 0.1)
    optimizer = torch.optim.SGD([synthetic.images.requires_grad_()], lr=0.1)
    for loss, other in zip(gradient_matching(task, synthetic, 0), wanted, strict=True):
        assert float(loss.detach()) == pytest.approx(other, rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(synthetic.images.detach(), moved, rtol=1e-3, atol=1e-3)


def test_a_large_set_is_learnt_in_batches() -> None:
    plan = resolve(tiny_plan("dc", images_per_class=100), ())
    task = Task.of(make_pictures(count=30), plan, torch.device("cpu"))
    synthetic = starting_set(task)
    pictures, labels = lessons(task, synthetic, 3, torch.Generator().manual_seed(0))
    assert pictures.shape[:2] == labels.shape == (6, 150)  # 300 pictures: two batches a round
    for first in (0, 2, 4):
        seen = pictures[first : first + 2].flatten(0, 1).flatten(1)
        assert torch.equal(seen.sort(0).values, synthetic.images.flatten(1).sort(0).values)
        assert labels[first : first + 2].flatten().bincount().tolist() == [100, 100, 100]


def test_augmented_methods_learn_augmented_pictures() -> None:
    for names, changed in (((), False), (("brightness",), True)):
        task = Task.of(make_pictures(count=30), resolve(tiny_plan("dsa"), names), torch.device("cpu"))
        synthetic = starting_set(task)
        pictures, labels = lessons(task, synthetic, 2, torch.Generator().manual_seed(0))
        assert labels.shape == (2, 6)
        shifts = [
            min(float((one - other).std()) for other in synthetic.images[synthetic.labels() == label])
            for one, label in zip(pictures[0], labels[0], strict=True)
        ]
        assert max(shifts) < 1e-5  # the same pictures, in any order, up to a constant
        means = pictures.mean((2, 3, 4)).sort(1).values
        assert bool((means[0] != means[1]).all()) == changed
