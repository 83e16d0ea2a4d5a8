"""Bar A8 (equal losses, resume equals the uninterrupted run) and the bad input of section 7."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewer.core.errors import ConfigError, DataError
from fewer.learn.data import LabelledImages, pick_labels
from fewer.learn.few_labels.plan import SemiSupervisedPlan
from fewer.learn.few_labels.train import SemiSupervisedResult, semi_supervised
from fewer.learn.thresholds.methods import METHODS
from tests.learn.stop_at import Stop, StopAt

PLAN = SemiSupervisedPlan(steps=12, batch=6, ratio=3, rate=0.05, device="cpu", seed=3)


def weights(result: SemiSupervisedResult) -> dict[str, torch.Tensor]:
    return {**result.model.network.state_dict(), **result.state.state_dict()}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_repeats(method: str, train: LabelledImages) -> None:
    rows = pick_labels(train.labels, 2, 3, seed=0)
    plan = replace(PLAN, steps=3)
    first, again = (semi_supervised(train, rows, method, plan=plan) for _ in range(2))  # pyright: ignore
    assert all(
        torch.equal(a, b) for a, b in zip(weights(first).values(), weights(again).values(), strict=True)
    )
    other = semi_supervised(train, rows, method, plan=replace(plan, seed=4))  # pyright: ignore
    assert not torch.equal(
        first.model.network.state_dict()["classifier.weight"],
        other.model.network.state_dict()["classifier.weight"],
    )


@pytest.mark.parametrize("estimation", ["class", "instance", "recounted"])
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(
    estimation: str, train: LabelledImages, tmp_path: Path
) -> None:
    posterior = "views" if estimation == "recounted" else "flattened"
    plan = replace(PLAN, estimation=estimation, recount=3, posterior=posterior)  # pyright: ignore
    rows = pick_labels(train.labels, 2, 3, seed=0)
    whole = semi_supervised(train, rows, plan=plan)
    with pytest.raises(Stop):
        semi_supervised(train, rows, plan=plan, checkpoints=tmp_path, progress=StopAt(7))
    resumed = semi_supervised(train, rows, plan=plan, checkpoints=tmp_path, resume=True)
    assert resumed.steps_made == 5
    assert all(
        torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(resumed).values(), strict=True)
    )
    assert resumed.curves == whole.curves


def test_a_run_is_resumed_with_the_same_pictures_labels_and_settings_alone(
    train: LabelledImages, tmp_path: Path
) -> None:
    rows = pick_labels(train.labels, 2, 3, seed=0)
    with pytest.raises(Stop):
        semi_supervised(train, rows, plan=PLAN, checkpoints=tmp_path, progress=StopAt(3))
    darker = LabelledImages(train.images // 2, train.labels, train.class_names)
    others = pick_labels(train.labels, 2, 3, seed=1)
    faster = replace(PLAN, rate=PLAN.rate * 2)
    for data, labelled, plan, what in (
        (darker, rows, PLAN, "with pictures"),
        (train, others, PLAN, "with labelled rows"),
        (train, rows, faster, "with rate"),
    ):
        with pytest.raises(ConfigError, match=what):
            semi_supervised(data, labelled, plan=plan, checkpoints=tmp_path, resume=True)


def test_pictures_without_labels_help_on_an_easy_task(
    train: LabelledImages, held_out: LabelledImages
) -> None:
    rows = pick_labels(train.labels, 1, 3, seed=0)
    result = semi_supervised(train, rows, plan=replace(PLAN, steps=60), test=held_out)
    assert result.figures is not None
    assert result.figures.accuracy > 0.9
    spread = [s for s in result.curves["threshold_spread"][10:] if s is not None]
    assert min(spread) > 0  # one threshold for each image
    assert result.verdicts.accepted is not None


def test_labels_of_other_rows_are_not_used(train: LabelledImages) -> None:
    rows = pick_labels(train.labels, 2, 3, seed=0)
    hidden = torch.full_like(train.labels, -1)
    hidden[rows] = train.labels[rows]
    blind = LabelledImages(train.images, hidden, train.class_names)
    plan = replace(PLAN, steps=4)
    first, second = semi_supervised(train, rows, plan=plan), semi_supervised(blind, plan=plan)
    assert all(
        torch.equal(a, b) for a, b in zip(weights(first).values(), weights(second).values(), strict=True)
    )
    assert second.labelled.tolist() == rows.tolist()


def test_bad_input(train: LabelledImages) -> None:
    with pytest.raises(DataError, match="class 'bottom' has no labelled"):
        semi_supervised(train, [0, 1], plan=PLAN)
    with pytest.raises(DataError, match="row 90 is outside"):
        semi_supervised(train, [0, 1, 90], plan=PLAN)
    with pytest.raises(DataError, match="every picture is labelled"):
        semi_supervised(train, None, plan=PLAN)
    blind = LabelledImages(train.images, torch.full_like(train.labels, -1), train.class_names)
    with pytest.raises(DataError, match="row 4 is given as labelled"):
        semi_supervised(blind, [4], plan=PLAN)
    with pytest.raises(DataError, match="no training pictures"):
        semi_supervised(train.select([]), None, plan=PLAN)


def test_a_batch_larger_than_the_set_is_drawn_with_replacement_and_said(train: LabelledImages) -> None:
    said: list[str] = []

    class Listener(StopAt):
        def say(self, text: str) -> None:
            said.append(text)

    few = train.select(range(9))
    plan = replace(PLAN, steps=2)
    semi_supervised(few, [0, 1, 2], plan=plan, progress=Listener(-1))
    assert "18 of 9" in said[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_trains_the_same_network(method: str, train: LabelledImages) -> None:
    """There views, forward and backward pass are recorded graphs; the draws are the same."""
    rows = pick_labels(train.labels, 2, 3, seed=0)
    torch.backends.cudnn.allow_tf32, before = False, torch.backends.cudnn.allow_tf32
    try:
        here, there = (
            semi_supervised(train, rows, method, plan=replace(PLAN, steps=6, device=device, dtype="fp32"))  # pyright: ignore
            for device in ("cpu", "cuda")
        )
    finally:
        torch.backends.cudnn.allow_tf32 = before
    for one, other in zip(here.curves["loss"], there.curves["loss"], strict=True):
        assert one == pytest.approx(other, rel=0.02, abs=0.02)  # pyright: ignore
    for name, value in here.model.network.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(
                value, there.model.network.state_dict()[name].cpu(), rtol=0.05, atol=0.02
            )


def test_purity_is_of_pictures_that_were_not_trained_with_their_label(train: LabelledImages) -> None:
    """In practice the labelled ones are the only ones whose class is known: there is then no purity."""
    rows = pick_labels(train.labels, 2, 3, seed=0)
    unknown = torch.full_like(train.labels, -1).index_copy(0, rows, train.labels[rows])
    plan = replace(PLAN, steps=3, cutoff=0.01)
    real = semi_supervised(LabelledImages(train.images, unknown, train.class_names), rows, plan=plan)
    known = semi_supervised(train, rows, plan=plan)
    assert set(real.curves["purity"]) == {None} and None not in known.curves["purity"]
    assert real.curves["loss"] == known.curves["loss"]
