import torch

from fewer.learn.few_labels.diary import CURVES, Diary
from fewer.learn.thresholds.batch import Outcome


def result(weights: list[int], confidence: list[float], pseudo: list[int]) -> Outcome:
    one = torch.tensor(1.0)
    threshold = torch.tensor([0.2, 0.4, 0.6, 0.8])
    return Outcome(
        one,
        one,
        one * 2,
        torch.tensor(weights).float(),
        threshold,
        torch.tensor(confidence),
        torch.tensor(pseudo),
    )


def test_means_purity_and_the_constant_threshold_beside() -> None:
    diary = Diary(steps=10, unlabelled=6, points=2)
    # Accepts 0 (right) and 3 (right); a constant threshold would take 0 (right) and 1 (wrong).
    note = result([1, 0, 0, 1], [0.9, 0.8, 0.1, 0.7], [0, 0, 2, 1])
    rows, truth = torch.tensor([5, 4, 3, 2]), torch.tensor([0, 1, 2, 1])
    diary.note(0, note, rows, truth)
    diary.note(1, note, rows, truth)
    curves = diary.curves()
    assert curves["step"] == [5.0]
    assert curves["utilisation"] == [0.5]
    assert curves["unsupervised"] == [2.0]
    assert curves["purity"] == [1.0]
    assert curves["purity_constant"] == [0.5]
    assert abs((curves["threshold_spread"][0] or 0) - 0.05**0.5) < 1e-6
    assert diary.seen.tolist() == [0, 0, 2, 2, 2, 2]
    assert diary.accepted.tolist() == [0, 0, 2, 0, 0, 2]


def test_unknown_truth_counts_for_nothing() -> None:
    diary = Diary(steps=1, unlabelled=4)
    note = result([1, 1, 1, 1], [0.9, 0.8, 0.7, 0.6], [0, 0, 0, 0])
    diary.note(0, note, torch.arange(4), torch.full((4,), -1))
    assert diary.curves()["purity"] == [None]


def test_the_constant_threshold_is_compared_on_the_same_pictures() -> None:
    """Of the two with known truth one is accepted; the most confident of the two is the wrong one."""
    diary = Diary(steps=1, unlabelled=4)
    note = result([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.6], [0, 0, 0, 0])
    diary.note(0, note, torch.arange(4), torch.tensor([-1, 1, 0, -1]))
    assert diary.curves()["purity"] == [1.0] and diary.curves()["purity_constant"] == [0.0]


def test_every_step_has_a_place_and_empty_ones_are_left_out() -> None:
    diary = Diary(steps=7, unlabelled=4, points=3)
    for step in (0, 6):
        diary.note(step, result([1, 0, 0, 0], [0.9] * 4, [0] * 4), torch.arange(4), torch.zeros(4).long())
    curves = diary.curves()
    assert len(curves["step"]) == 2
    assert set(curves) == {"step", *CURVES, "purity", "purity_constant"}
    assert Diary(steps=7, unlabelled=4).points == 7
