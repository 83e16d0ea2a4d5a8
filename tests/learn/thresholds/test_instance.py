"""Bar A1: the threshold by hand-computed cases, to 1e-6."""

import pytest
import torch

from fewer.core.errors import ConfigError, DataError
from fewer.learn.thresholds.instance import InstanceThreshold, column, image_part, require_distributions


def by_hand(p: list[float], matrix: list[list[float]], flattened: bool) -> tuple[int, float]:
    """The formula of section 2.2 in plain Python: (s, tau)."""
    import math

    s = max(range(len(p)), key=lambda k: p[k])
    weights = [math.exp(value / 0.5) for value in p]
    q = [w / sum(weights) for w in weights] if flattened else p
    second = sorted(q)[-2]
    return s, matrix[s][s] * second + sum(matrix[i][s] * q[i] for i in range(len(p)) if i != s)


@pytest.mark.parametrize("classes", [2, 3, 10, 123])
@pytest.mark.parametrize("posterior", ["flattened", "plain"])
@pytest.mark.parametrize("shared", [True, False])
def test_values_by_hand(classes: int, posterior: str, shared: bool) -> None:
    generator = torch.Generator().manual_seed(classes)
    p = torch.randn(9, classes, generator=generator, dtype=torch.float64).mul(2).softmax(1)
    shape = (classes, classes) if shared else (9, classes, classes)
    matrix = torch.randn(shape, generator=generator, dtype=torch.float64).softmax(-1)
    decide = InstanceThreshold(classes=classes, cutoff=0.8, posterior=posterior)  # pyright: ignore
    got = decide(p, matrix)
    kappa = 0.8 * p.max(1).values.mean()
    for i in range(9):
        own = matrix if shared else matrix[i]
        s, tau = by_hand(p[i].tolist(), own.tolist(), posterior == "flattened")
        assert int(got.pseudo[i]) == s
        assert float(got.tau[i]) == pytest.approx(tau, abs=1e-6)
        threshold = min(max(float(kappa) + tau, 0.0), 0.99)
        assert float(got.threshold[i]) == pytest.approx(threshold, abs=1e-6)
        assert bool(got.mask[i]) == (float(p[i].max()) >= threshold)


def test_published_numbers_of_a_confident_image() -> None:
    # K = 10, one-hot p: q_top = e^2 / (e^2 + 9) = 0.4508, the others 0.0610.
    q = InstanceThreshold(classes=10).flatten(torch.eye(10)[:1])
    assert float(q.max()) == pytest.approx(0.4508, abs=1e-4)
    assert float(q.min()) == pytest.approx(0.0610, abs=1e-4)


def test_identity_and_plain_posterior_leave_the_runner_up() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]])
    got = InstanceThreshold(classes=3, posterior="plain")(p, torch.eye(3))
    torch.testing.assert_close(got.tau, torch.tensor([0.2, 0.35]))


@pytest.mark.parametrize("posterior", ["flattened", "plain"])
def test_heavier_errors_raise_the_threshold(posterior: str) -> None:
    p = torch.tensor([[0.5, 0.4, 0.1]])
    decide = InstanceThreshold(classes=3, posterior=posterior)  # pyright: ignore
    taus = []
    for error in (0.0, 0.1, 0.2, 0.3):
        matrix = torch.eye(3)
        matrix[1] = torch.tensor([error, 1 - error, 0.0])
        taus.append(float(decide(p, matrix).tau))
    assert taus == sorted(taus)
    assert taus[3] > taus[0]


def test_unequal_images_get_unequal_thresholds() -> None:
    p = torch.randn(32, 5, generator=torch.Generator().manual_seed(0)).softmax(1)
    threshold = InstanceThreshold(classes=5)(p, torch.eye(5)).threshold
    assert len(threshold.unique()) == 32
    assert threshold.std() > 0


def test_noisy_comparison_uses_the_noisy_posterior() -> None:
    p = torch.tensor([[0.6, 0.4]])
    matrix = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
    got = InstanceThreshold(classes=2, cutoff=0.1, compare="noisy", posterior="plain")(p, matrix)
    # (p T)_0 = 0.74; tau = 0.9 * 0.4 + 0.5 * 0.4 = 0.56; kappa = 0.06.
    assert float(got.threshold) == pytest.approx(0.62, abs=1e-6)
    assert bool(got.mask)


def test_columns_of_one_and_of_many_matrices_agree() -> None:
    matrix = torch.rand(4, 4)
    pseudo = torch.tensor([2, 0, 3])
    many = matrix.expand(3, 4, 4)
    torch.testing.assert_close(column(matrix, pseudo), column(many, pseudo))
    assert torch.equal(column(matrix, pseudo)[0], matrix[:, 2])
    q = torch.rand(3, 4)
    torch.testing.assert_close(image_part(q, matrix, pseudo), image_part(q, many, pseudo))


def test_clip_holds() -> None:
    got = InstanceThreshold(classes=2, cutoff=1.0)(torch.tensor([[0.999, 0.001]]), torch.eye(2))
    assert float(got.threshold) == pytest.approx(0.99)


@pytest.mark.parametrize(
    "settings",
    [
        {"cutoff": 0.0},
        {"cutoff": 1.01},
        {"cutoff": -1.0},
        {"classes": 1},
        {"clip": 0.0},
        {"temperature": 0.0},
    ],
)
def test_settings_outside_their_range(settings: dict) -> None:
    with pytest.raises(ConfigError):
        InstanceThreshold(**{"classes": 3, **settings})


def test_rows_that_are_no_distribution_are_named() -> None:
    decide = InstanceThreshold(classes=2)
    good = torch.tensor([[0.5, 0.5], [0.9, 0.1]])
    with pytest.raises(DataError, match="probabilities: row 1"):
        decide(torch.tensor([[0.5, 0.5], [0.9, 0.2]]), torch.eye(2))
    with pytest.raises(DataError, match="transition: row 0"):
        decide(good, torch.tensor([[0.5, 0.4], [0.0, 1.0]]))
    with pytest.raises(DataError, match=r"row \(1, 0\)"):
        decide(good, torch.stack([torch.eye(2), torch.tensor([[0.5, 0.6], [0.0, 1.0]])]))
    with pytest.raises(DataError):
        require_distributions(torch.tensor([torch.nan, 1.0]), "x")
    with pytest.raises(ConfigError, match="do not fit"):
        decide(torch.ones(2, 3) / 3, torch.eye(3))
