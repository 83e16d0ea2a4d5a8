import numpy as np
import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from fewer.stitch.panorama import Panorama
from fewer.stitch.tube.metrics import (
    coverage,
    drift,
    map_error,
    pair_errors,
    source_similarity,
    source_truth,
    ssim_map,
    strip_error,
    texture_similarity,
)
from fewer.stitch.tube.render import Tube
from fewer.stitch.unfold.strip import StripShape


def perfect(count: int = 500, width: int = 400) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    pixels = random.uniform([0, 0], [width, 300], (count, 2))
    scale = 2 * np.pi * 10 / width
    truth = pixels * scale + [17.0, -5.0]
    truth[:, 0] = np.angle(np.exp(1j * truth[:, 0] / 10)) * 10  # only known modulo a turn
    return pixels, truth


def test_a_perfect_map_has_no_error_whatever_its_origin() -> None:
    pixels, truth = perfect()
    error = map_error(pixels, truth, 400)
    assert error.rmse < 1e-6
    assert drift(pixels, truth, np.arange(500), 400) < 1e-6


def test_pasting_a_part_in_the_wrong_place_is_seen() -> None:
    pixels, truth = perfect()
    truth[pixels[:, 1] > 270, 1] += 3.0
    assert map_error(pixels, truth, 400).rmse > 0.3
    order = np.argsort(pixels[:, 1])
    assert drift(pixels[order], truth[order], np.arange(500), 400) == pytest.approx(3.0, abs=0.8)


def test_ssim_agrees_with_torchmetrics() -> None:
    random = np.random.default_rng(0)
    first = random.uniform(0, 255, (60, 70))
    second = np.clip(first + random.normal(0, 30, (60, 70)), 0, 255)
    tensors = [torch.from_numpy(values)[None, None] for values in (first, second)]
    theirs = structural_similarity_index_measure(
        *tensors, data_range=255.0, gaussian_kernel=False, kernel_size=7
    )
    ours = ssim_map(first, second)[3:-3, 3:-3].mean()
    assert ours == pytest.approx(float(theirs), abs=0.01)
    assert ssim_map(first, first).min() > 0.999999


def test_strip_error_is_in_pixels_of_a_thousand_columns_and_clipped() -> None:
    shape = StripShape(500, 100, 0.3)
    p = np.random.default_rng(0).uniform(0, 100, (50, 2))
    assert strip_error(np.eye(3), p, p + np.array([2.0, 0.0]), shape) == pytest.approx(4.0)
    assert strip_error(np.eye(3), p, p + np.array([499.0, 0.0]), shape) == pytest.approx(
        2.0
    )  # round the tube
    assert strip_error(np.eye(3), p, p + np.array([0.0, 5000.0]), shape) == pytest.approx(200.0)
    assert np.isnan(strip_error(np.eye(3), p[:0], p[:0], shape))


def test_a_small_map_meets_the_truth(small_tube: Tube, small_map: Panorama) -> None:
    segment = small_map.segments[0]
    pixels, truth, _ = source_truth(small_tube, segment, every=5)
    error = map_error(pixels, truth, segment.image.shape[1])
    assert error.rmse < 0.6
    assert (
        np.mean(pair_errors(small_tube, segment)) < 1.6
    )  # a 400-column strip: its pixels are 2.5 times larger
    assert texture_similarity(small_tube, segment, error) > 0.5
    assert coverage(small_tube, segment, error) > 0.85


def test_the_map_shows_the_wall_of_its_source_pixels(small_tube: Tube, small_map: Panorama) -> None:
    right = source_similarity(small_tube, small_map.segments[0], columns=64)
    wrong = source_similarity(Tube("B", seed=2, frames=10, size=240), small_map.segments[0], columns=64)
    assert right > 0.5
    assert right > wrong + 0.3
