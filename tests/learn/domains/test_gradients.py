import pytest
import torch

from fewer.learn.domains.gradients import EPSILON, GradientAverage, first_score, variance_score


def filled() -> GradientAverage:
    average = GradientAverage()
    average.add("task", ["w"], [torch.tensor([1.0, -3.0])], squares=True)
    average.add("task", ["w"], [torch.tensor([3.0, 3.0])], squares=True)
    average.add("domain", ["w"], [torch.tensor([0.5, -2.0])], squares=True)
    average.add("env0", ["w"], [torch.tensor([1.0, 1.0])])
    average.add("env1", ["w"], [torch.tensor([1.0, 5.0])])
    return average


def test_scores_by_hand() -> None:
    average = filled()
    assert variance_score(average, "w", "task", 2).tolist() == [2.0, 0.0]
    assert variance_score(average, "w", "domain", 2).tolist() == [0.5, 2.0]
    # The released code: two task gradients and one domain gradient, over the two batches.
    assert variance_score(average, "w", "mixed", 2).tolist() == [2.25, 1.0]
    assert variance_score(average, "w", "covariance", 2).tolist() == [0.0, 2.0]


def test_first_scores_by_hand() -> None:
    average, weight = filled(), torch.tensor([-0.3, 0.2])
    generator = torch.Generator().manual_seed(0)
    assert first_score(average, "w", weight, "weight", generator).tolist() == pytest.approx([0.3, 0.2])
    assert first_score(average, "w", weight, "sensitivity", generator).tolist() == [2.0, 0.0]
    # Squares are averaged, so that signs do not cancel: this is where fisher differs from sensitivity.
    assert first_score(average, "w", weight, "fisher", generator).tolist() == [5.0, 9.0]
    score = first_score(average, "w", weight, "domain-fisher", generator)
    domain = torch.tensor([0.25, 4.0]) / 2.125
    assert torch.allclose(score, torch.tensor([5.0, 9.0]) / 7.0 / (domain + EPSILON))


def test_random_scores_follow_the_generator() -> None:
    weight = torch.zeros(5)
    scores = [
        first_score(GradientAverage(), "w", weight, "random", torch.Generator().manual_seed(s))
        for s in (1, 1, 2)
    ]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


def test_an_average_survives_a_checkpoint() -> None:
    average, again = filled(), GradientAverage()
    again.restore(average.tensors(), average.counts)
    for kind in ("task", "domain"):
        assert torch.equal(average.mean(kind, "w"), again.mean(kind, "w"))
        assert torch.equal(average.mean_square(kind, "w"), again.mean_square(kind, "w"))


def test_squares_are_kept_only_where_they_are_asked_for() -> None:
    average = GradientAverage()
    average.add("domain", ["w"], [torch.ones(3)])
    assert average.squares == {}
    assert average.mean("domain", "w").tolist() == [1.0, 1.0, 1.0]
