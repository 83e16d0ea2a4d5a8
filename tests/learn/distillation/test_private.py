import math

import numpy as np
import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.learn.distillation import private
from fewer.learn.distillation.gradient import gradient_distance
from fewer.learn.distillation.loop import RunOptions, distill
from fewer.learn.distillation.plan import PrivacyPlan, resolve
from fewer.learn.distillation.private import PrivateMatching, noise_for, private_class_sums, spent
from fewer.learn.distillation.start import starting_set
from fewer.learn.distillation.task import Task
from tests.learn.distillation.conftest import make_pictures, tiny_plan


@pytest.mark.parametrize("per_unit", [1, 4])
def test_no_unit_moves_the_sums_by_more_than_the_clip(per_unit: int) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(20, 6, generator=generator) * torch.logspace(-2, 3, 20)[:, None]
    labels, units = torch.randint(3, (20,), generator=generator), torch.arange(20) // per_unit
    whole = private_class_sums(vectors, labels, units, 3, 1.5)
    for unit in units.unique():
        kept = units != unit
        without = private_class_sums(vectors[kept], labels[kept], units[kept], 3, 1.5)
        assert float((whole - without).norm()) <= 1.5 + 1e-5


def test_short_vectors_are_summed_as_they_are() -> None:
    vectors, labels = torch.eye(4) * 0.1, torch.tensor([0, 1, 1, 0])
    sums = private_class_sums(vectors, labels, torch.arange(4), 2, 1.0)
    torch.testing.assert_close(sums, torch.tensor([[0.1, 0, 0, 0.1], [0, 0.1, 0.1, 0]]))
    assert private_class_sums(vectors[:0], labels[:0], torch.arange(0), 2, 1.0).abs().sum() == 0


def test_half_the_noise_costs_more_epsilon() -> None:
    plan = PrivacyPlan(noise_multiplier=2.0, sample_rate=0.05)
    epsilons = [spent(plan, sigma, 100, "image").epsilon for sigma in (2.0, 1.0, 0.5)]
    assert epsilons[0] < epsilons[1] < epsilons[2]
    assert spent(plan, 2.0, 400, "image").epsilon > epsilons[0]


def test_the_accountant_knows_the_gaussian_mechanism() -> None:
    # One full-batch release at sigma 10: the exact epsilon of a Gaussian mechanism lies a little below RDP's.
    plan = PrivacyPlan(noise_multiplier=10.0, sample_rate=1.0, delta=1e-5)
    found = spent(plan, 10.0, 1, "image").epsilon
    from scipy.optimize import brentq
    from scipy.stats import norm

    def delta(epsilon: float) -> float:
        s = 1 / 10.0
        a, b = norm.cdf(s / 2 - epsilon / s), norm.cdf(-s / 2 - epsilon / s)
        return float(a - torch.tensor(epsilon).exp() * b)

    exact = brentq(lambda e: delta(e) - 1e-5, 1e-3, 5)
    assert exact <= found <= 1.5 * exact


def test_the_noise_is_derived_from_the_epsilon_wanted() -> None:
    plan = PrivacyPlan(epsilon=3.0, sample_rate=0.1)
    sigma = noise_for(plan, 50)
    assert 2.8 <= spent(plan, sigma, 50, "image").epsilon <= 3.0 + 1e-6
    for wrong in (PrivacyPlan(), PrivacyPlan(epsilon=1.0, noise_multiplier=1.0)):
        with pytest.raises(ConfigError, match="either epsilon or noise"):
            noise_for(wrong, 10)


@pytest.mark.parametrize("method", ["dm", "dc", "dsa"])
def test_a_private_run_reports_its_epsilon(method: str) -> None:
    plan = tiny_plan(method, privacy=PrivacyPlan(noise_multiplier=2.0, sample_rate=0.3, clip=0.5))
    distilled = distill(make_pictures(count=30), plan=plan)
    report = distilled.datasheet.privacy["dp"]
    assert report["unit"] == "image" and report["steps"] == 3 and 0 < report["epsilon"] < 20
    patients = RunOptions(units=torch.arange(30) // 3)
    made = distill(make_pictures(count=30), plan=plan, options=patients)
    assert made.datasheet.privacy["dp"]["unit"] == "patient"
    with pytest.raises(ConfigError, match="patient numbers"):
        distill(make_pictures(count=30), plan=plan, options=RunOptions(units=torch.arange(3)))


def test_without_noise_private_dm_is_dm_of_clipped_features() -> None:
    plan = resolve(tiny_plan("dm", privacy=PrivacyPlan(noise_multiplier=1.0, sample_rate=1.0, clip=1e6)), ())
    data = make_pictures(count=24)
    task = Task.of(data, plan, torch.device("cpu"))
    synthetic = starting_set(task)
    synthetic.images = task.source.images.clone()
    matching = PrivateMatching(0.0, torch.arange(24))
    assert float(next(matching(task, synthetic, 0))) < 1e-6


@pytest.mark.parametrize(
    ("method", "changes"),
    [("ncfm", {}), ("dm", {"start": "real"}), ("dm", {"soft_labels": True})],
)
def test_what_would_break_the_guarantee_is_refused(method: str, changes: dict) -> None:
    with pytest.raises(ConfigError, match=r"privacy"):
        distill(make_pictures(), plan=tiny_plan(method, privacy=PrivacyPlan(epsilon=1.0), **changes))


@pytest.mark.parametrize(
    ("privacy", "message"),
    [
        ({"epsilon": 1e-3}, "epsilon 0.001 with delta 1e-05 cannot be kept over"),
        ({"epsilon": 1.0, "delta": 0.04}, "delta is 0.04; below 1 / 30 is needed"),
    ],
)
def test_an_epsilon_out_of_reach_and_a_delta_without_meaning_are_named(privacy: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        distill(make_pictures(count=30), plan=tiny_plan("dm", privacy=PrivacyPlan(**privacy)))


def test_a_step_that_failed_is_spent_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has looked at the real pictures, whatever became of its loss."""
    asked, draw = [], PrivateMatching._draw

    def counted(self: PrivateMatching, task: Task) -> torch.Tensor:
        asked.append(1)
        return draw(self, task)

    def first_fails(*given: object, leading: int) -> torch.Tensor:
        distance = gradient_distance(*given, leading=leading)  # pyright: ignore
        return distance * (math.nan if len(asked) == 1 else 1.0)

    monkeypatch.setattr(PrivateMatching, "_draw", counted)
    monkeypatch.setattr(private, "gradient_distance", first_fails)
    plan = tiny_plan("dc", iterations=3, privacy=PrivacyPlan(noise_multiplier=1.0, delta=1e-3))
    made = distill(make_pictures(count=30), plan=plan)
    assert len(asked) == made.datasheet.privacy["dp"]["steps"] == 3


def test_the_noise_is_not_that_of_the_seed_in_the_file() -> None:
    """Whoever has the file knows its seed; noise drawn from it could be taken away again."""
    plan = tiny_plan("dm", privacy=PrivacyPlan(noise_multiplier=0.7, delta=1e-3))
    first, second = (distill(make_pictures(count=30), plan=plan) for _ in range(2))
    assert first.datasheet.seed == second.datasheet.seed
    assert not torch.equal(first.images, second.images)


def test_noise_and_draws_have_the_stated_size() -> None:
    plan = resolve(tiny_plan("dm", privacy=PrivacyPlan(noise_multiplier=3.0, sample_rate=0.3, clip=2.0)), ())
    task = Task.of(make_pictures(count=300), plan, torch.device("cpu"))
    matching = PrivateMatching(3.0, torch.arange(300), np.random.default_rng(0))
    taken = [len(matching._draw(task)) for _ in range(50)]
    assert 85 < sum(taken) / 50 < 95
    nobody = torch.zeros(0, dtype=torch.int64)
    noise = matching._noised_means(task, torch.zeros(0, 5000), nobody) * 0.3 * 100  # of 100 pictures a class
    assert noise.shape == (3, 5000)
    assert float(noise.std()) == pytest.approx(6.0, rel=0.03)
