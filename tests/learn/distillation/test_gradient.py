import pytest
import torch

from fewer.learn.distillation.gradient import gradient_distance, gradient_matching
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
