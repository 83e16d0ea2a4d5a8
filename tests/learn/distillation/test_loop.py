from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from fewer.core.errors import ConfigError, DataError
from fewer.learn.data import LabelledImages
from fewer.learn.distillation import loop
from fewer.learn.distillation.loop import MATCHING, RunOptions, distill
from fewer.learn.distillation.plan import SELECTIONS, MethodName
from fewer.learn.distillation.scores import score_distilled
from fewer.learn.distillation.training import Recipe
from tests.learn.distillation.conftest import make_pictures, tiny_plan

METHODS = get_args(MethodName)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_set_of_the_size_asked_for(method: str) -> None:
    data = make_pictures(count=90)
    first, again = (distill(data, plan=tiny_plan(method)) for _ in range(2))
    assert first.images.shape == (6, 1, 8, 8) and first.images.dtype == torch.uint8
    assert torch.equal(first.labels, torch.arange(3).repeat_interleave(2))
    assert torch.equal(first.images, again.images)  # same seed, same bytes
    assert not torch.equal(first.images, distill(data, plan=tiny_plan(method), seed=1).images)
    assert first.datasheet.privacy["real_pixels"] == (method in SELECTIONS)


@pytest.mark.parametrize("channels", [1, 3])
def test_distilling_beats_noise(channels: int) -> None:
    data, test = (
        make_pictures(count=150, channels=channels),
        make_pictures(count=60, channels=channels, seed=5),
    )
    made = distill(data, plan=tiny_plan("dm", iterations=30, start="noise", learning_rate=5.0))
    recipe = Recipe(epochs=30)
    noise = replace(made, images=torch.randint(255, made.images.shape).to(torch.uint8))
    scores = [
        score_distilled(one, test, recipe=recipe, seeds=(0, 1)).balanced_accuracy for one in (made, noise)
    ]
    assert scores[0] > scores[1] + 0.2


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", ["dc", "dm", "ncfm", "datm"])
def test_a_run_that_was_killed_goes_on_to_the_same_bits(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, plan = make_pictures(count=60), tiny_plan(method, iterations=6, precision="float32")
    unbroken = distill(data, plan=plan)
    original = MATCHING[method]

    def dying(task, synthetic, step):
        if step == 4:
            raise Killed
        yield from original(task, synthetic, step)

    options = RunOptions(checkpoint_folder=tmp_path, checkpoint_every=2, resume=True)
    with monkeypatch.context() as patch:
        patch.setitem(loop.MATCHING, method, dying)
        with pytest.raises(Killed):
            distill(data, plan=plan, options=options)
    resumed = distill(data, plan=plan, options=options)
    assert torch.equal(resumed.images, unbroken.images)
    assert resumed.datasheet.iterations == 6
    with pytest.raises(ConfigError, match="other settings"):
        distill(data, plan=replace(plan, seed=3), options=options)


def test_a_loss_that_explodes_goes_back_and_then_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def exploding(task, synthetic, step):
        calls.append(step)
        bad = torch.nan if len(calls) == 2 else 1.0
        yield bad * synthetic.images.square().sum()

    monkeypatch.setitem(loop.MATCHING, "dm", exploding)
    made = distill(make_pictures(), plan=tiny_plan("dm", learning_rate=0.01))
    assert calls == [0, 1, 1, 2] and made.datasheet.iterations == 3

    def always(task, synthetic, step):
        yield torch.nan * synthetic.images.sum()

    monkeypatch.setitem(loop.MATCHING, "dm", always)
    with pytest.raises(DataError, match="NaN at iteration 0"):
        distill(make_pictures(), plan=tiny_plan("dm"))


def test_a_time_limit_ends_the_run() -> None:
    made = distill(make_pictures(), plan=tiny_plan("dm", iterations=1_000_000, seconds=0.3))
    assert 0 < made.datasheet.iterations < 100_000


def test_what_cannot_be_distilled_is_refused() -> None:
    data = make_pictures()
    one = LabelledImages(data.images, data.labels * 0, data.class_names)
    with pytest.raises(DataError, match="1 class"):
        distill(one, plan=tiny_plan())
    with pytest.raises(DataError, match="fewer images per class"):
        distill(data, 21, "random")
    with pytest.raises(ConfigError, match="whole pictures"):
        distill(data, plan=tiny_plan("random", factor=2))
    with pytest.raises(ConfigError, match="images_per_class"):
        distill(data, 0)
    with pytest.raises(ConfigError, match="resume"):
        distill(data, plan=tiny_plan(), options=RunOptions(resume=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("method", ["dc", "dsa", "dm", "idm", "mtt", "datm"])
def test_a_gpu_makes_the_same_pictures(method: str) -> None:
    """There the losses and their gradients come from recorded graphs."""
    torch.backends.cudnn.allow_tf32, before = False, torch.backends.cudnn.allow_tf32
    try:
        data = make_pictures(count=60)
        plan = tiny_plan(method, iterations=2, precision="float32", learning_rate=0.1)
        made = [distill(data, plan=plan, device=device) for device in ("cpu", "cuda")]
        torch.testing.assert_close(made[0].images, made[1].images, rtol=1e-3, atol=1e-3)
        assert torch.isfinite(distill(data, plan=tiny_plan("ncfm"), device="cuda").images.float()).all()
    finally:
        torch.backends.cudnn.allow_tf32 = before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_scores_a_set_alike() -> None:
    data, test = make_pictures(count=90), make_pictures(count=60, seed=5)
    made = distill(data, plan=tiny_plan("dm", iterations=20))
    here, there = (
        score_distilled(made, test, recipe=Recipe(epochs=20), seeds=(0, 1), device=device)
        for device in ("cpu", "cuda")
    )
    assert abs(here.balanced_accuracy - there.balanced_accuracy) < 0.1
