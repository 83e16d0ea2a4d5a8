from dataclasses import replace

import pytest
import torch

from fewer.core.errors import DataError
from fewer.learn.data import LabelledImages
from fewer.learn.distillation.architectures import NetworkPlan, build_network
from fewer.learn.distillation.loop import distill
from fewer.learn.distillation.scores import (
    Score,
    TestPictures,
    fit_to,
    joined_runs,
    pooled,
    resized,
    score_distilled,
    score_full,
    score_random,
    score_steadily,
    summarise,
)
from fewer.learn.distillation.task import Source
from fewer.learn.distillation.training import Recipe
from tests.learn.distillation.conftest import make_pictures, tiny_plan

RECIPE = Recipe(epochs=30)


def test_a_file_scores_the_same_twice_and_better_than_chance() -> None:
    made, test = distill(make_pictures(count=60), plan=tiny_plan("random")), make_pictures(seed=1)
    first, again = (score_distilled(made, test, recipe=RECIPE, seeds=(0, 1)) for _ in range(2))
    assert first == again and first.runs == 2 and first.balanced_accuracy > 0.5


def test_random_distilled_and_full_share_one_function() -> None:
    data, test = make_pictures(count=60), make_pictures(count=45, seed=1)
    source = Source.of(data, torch.device("cpu"))
    network = build_network(NetworkPlan(width=8, depth=2), 1, (8, 8), 3)
    judged = TestPictures.of(test, source.mean, source.deviation)
    random = score_random(source, network, judged, RECIPE, 2, draws=3, seeds=(0,))
    assert random.runs == 3 and len(random.each) == 3 and random.balanced_spread >= 0
    full = score_full(source, network, judged, RECIPE, (0,))
    assert set(full) == {"plain", "balanced"} and full["plain"].accuracy >= random.accuracy


def test_classes_are_matched_by_name_and_sizes_by_resizing() -> None:
    made = distill(make_pictures(), plan=tiny_plan())
    data = make_pictures(size=16, seed=1)
    turned = LabelledImages(data.images, 2 - data.labels, data.class_names[::-1])
    fitted = fit_to(made, turned)
    assert fitted.size == (8, 8) and torch.equal(fitted.labels, data.labels)
    wide = torch.cat([data.images] * 3, 2)
    wide[:, :, :16], wide[:, :, 32:] = 0, 255
    wider = LabelledImages(wide, data.labels, data.class_names)
    middle = replace(made, datasheet=replace(made.datasheet, method_config={"fit": "crop"}))
    assert torch.equal(fit_to(middle, wider).images, fit_to(made, data).images)  # as the set was made
    with pytest.raises(DataError, match="'other' is not in"):
        fit_to(made, LabelledImages(data.images, data.labels, ("other", "b", "c")))
    colour = LabelledImages(data.images.expand(-1, -1, -1, 3), data.labels, data.class_names)
    assert torch.equal(fit_to(made, colour).images, fitted.images)


def test_random_pictures_may_carry_a_teacher_s_labels() -> None:
    data, test = make_pictures(count=60), make_pictures(count=45, seed=1)
    source = Source.of(data, torch.device("cpu"))
    network = build_network(NetworkPlan(width=8, depth=2), 1, (8, 8), 3)
    judged = TestPictures.of(test, source.mean, source.deviation)

    def turned(images: torch.Tensor) -> torch.Tensor:
        """Sure that every picture is of the class after its own."""
        same = (source.images[:, None] - images[None]).flatten(2).abs().amax(2).argmin(0)
        return 50.0 * torch.nn.functional.one_hot((source.labels[same] + 1) % 3, 3)

    own = score_random(source, network, judged, RECIPE, 4, 2, (0,))
    taught = score_random(source, network, judged, RECIPE, 4, 2, (0,), teacher=turned)
    assert own.balanced_accuracy > 0.5 > taught.balanced_accuracy


def test_summaries_are_means_and_spreads() -> None:
    score = summarise([(0.5, 0.4, 0.6), (0.7, 0.8, 0.6)])
    assert (score.accuracy, score.balanced_accuracy) == pytest.approx((0.6, 0.6))
    assert score.balanced_spread == pytest.approx(0.4 / 2**0.5) and score.auc_spread == 0
    both = pooled([score, score])
    assert both.runs == 4 and both.balanced_spread == 0 and both.each == score.each * 2


def test_resizing_keeps_the_mean() -> None:
    data = make_pictures(size=16, channels=3)
    small = resized(data, (5, 7))
    assert small.images.shape[1:] == (5, 7, 3)
    assert abs(float(small.images.float().mean() - data.images.float().mean())) < 2


def test_networks_are_added_until_their_mean_is_certain() -> None:
    def judge(spread: float, asked: list[tuple[int, ...]]):
        def one(seeds: tuple[int, ...]) -> Score:
            asked.append(seeds)
            return summarise([(0.8 + spread * (seed % 2), 0.8 + spread * (seed % 2), 0.9) for seed in seeds])

        return one

    calm: list[tuple[int, ...]] = []
    assert score_steadily(judge(0.001, calm), first_seed=100).runs == 5
    assert calm == [(100, 101, 102, 103, 104)]
    noisy: list[tuple[int, ...]] = []
    score = score_steadily(judge(0.2, noisy))
    assert score.runs == 20 and sum(noisy, ()) == tuple(range(20))
    whole = summarise([(0.8 + 0.2 * (seed % 2), 0.8 + 0.2 * (seed % 2), 0.9) for seed in range(20)])
    assert score.balanced_accuracy == pytest.approx(whole.balanced_accuracy)
    assert score.balanced_spread == pytest.approx(whole.balanced_spread)
    assert score.each == whole.each


def test_joined_runs_of_unequal_numbers_are_one_sample() -> None:
    rows = [(0.1 * k, 0.05 * k * k, 0.5) for k in range(7)]
    whole, parts = (
        summarise(rows),
        joined_runs([summarise(rows[:1]), summarise(rows[1:3]), summarise(rows[3:])]),
    )
    for name in ("accuracy", "balanced_accuracy", "auc", "accuracy_spread", "balanced_spread", "auc_spread"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name))
    assert parts.runs == 7 and parts.each == pytest.approx(whole.each)
