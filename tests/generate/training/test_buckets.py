"""Buckets never mix shapes, and an epoch holds every picture once."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fewer.core.errors import ConfigError
from fewer.generate.training.buckets import BucketSampler, bucket_shapes, fit_to, nearest_shape

SHAPES = [(4, 4), (2, 8), (8, 2)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 3))
def test_an_epoch_covers_every_picture_once_and_no_batch_mixes_shapes(buckets, batch, epoch) -> None:
    sampler = BucketSampler(buckets, batch, seed=1)
    batches = sampler.epoch(epoch)
    assert Counter(index for one in batches for index in one) == Counter(range(len(buckets)))
    assert all(len({buckets[index] for index in one}) == 1 for one in batches)
    assert all(1 <= len(one) <= batch for one in batches)
    assert len(batches) == sampler.batches_per_epoch


def test_a_step_has_the_same_batch_whatever_was_asked_before() -> None:
    buckets = [SHAPES[index % 3] for index in range(23)]
    forward = BucketSampler(buckets, 4, seed=5)
    wanted = [forward.at(step) for step in range(30)]
    backward = BucketSampler(buckets, 4, seed=5)
    assert [backward.at(step) for step in reversed(range(30))][::-1] == wanted
    assert wanted != [BucketSampler(buckets, 4, seed=6).at(step) for step in range(30)]


def test_shapes_have_about_the_area_and_the_wanted_multiple() -> None:
    shapes = bucket_shapes(512, 32)
    assert (512, 512) in shapes and len(shapes) > 20
    for height, width in shapes:
        assert height % 32 == 0 and width % 32 == 0
        assert 0.9 < height * width / 512**2 < 1.1
        assert 0.25 <= height / width <= 4.0


def test_the_nearest_shape_is_symmetric_in_height_and_width() -> None:
    shapes = bucket_shapes(256, 16)
    for height, width in ((100, 333), (333, 100), (77, 77), (1, 1000)):
        found = nearest_shape(height, width, shapes)
        ratio = found[0] / found[1]
        best = min(abs((h * width / (w * height)) - 1) for h, w in shapes)
        assert ratio * width / height == pytest.approx(1, abs=10 * best + 3)
    assert nearest_shape(77, 77, shapes) == (256, 256)


@pytest.mark.parametrize("size", [(5, 123), (123, 5), (1, 1), (64, 64)])
def test_a_picture_is_cropped_to_its_bucket_without_stretching(size: tuple[int, int]) -> None:
    fitted = fit_to(Image.new("RGB", size, "red"), (32, 64))
    assert fitted.size == (64, 32)
    assert fitted.getpixel((0, 0)) == (255, 0, 0)


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 32"):
        bucket_shapes(500, 32)
    with pytest.raises(ConfigError):
        BucketSampler([], 4, 0)
    with pytest.raises(ConfigError):
        nearest_shape(0, 5, SHAPES)
