"""The report: Fréchet distance against its closed form and scipy, a perfect model's figures."""

import json

import numpy as np
import pytest
import torch

from fewer.generate.autoencoder import DCAutoencoder
from fewer.generate.autoencoder.report import RandomFeatures, frechet_distance, reconstruction_report
from tests.generate.autoencoder.conftest import tiny_config


def test_frechet_distance_equals_the_formula_with_scipy() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(60, 7, generator=generator, dtype=torch.float64)
    other = torch.randn(80, 7, generator=generator, dtype=torch.float64) * 2 + 1
    first, second = (np.cov(vectors.numpy(), rowvar=False) for vectors in (one, other))
    shift = ((one.mean(0) - other.mean(0)) ** 2).sum().item()
    expected = shift + np.trace(first + second - 2 * linalg.sqrtm(first @ second).real)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(one, one + 3) == pytest.approx(9 * 7)


def test_features_are_the_same_every_time() -> None:
    torch.manual_seed(5)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(RandomFeatures()(images), RandomFeatures()(images))


def test_report_of_a_random_model() -> None:
    model = DCAutoencoder(tiny_config("no_latent_shortcuts")).eval()
    report = reconstruction_report(model, torch.rand(6, 3, 16, 16) * 2 - 1, batch=4)
    assert report["images"] == 6
    assert report["psnr"] < 15 and report["ssim"] < 0.9 and report["frechet"] > 0
    assert len(report["spectrum"]) == 4
    assert report["sharpness"] == pytest.approx(report["spectrum"][-1])
    assert all(kept > 0 for kept in report["spectrum"])


def test_a_flat_picture_has_figures_too() -> None:
    model = DCAutoencoder(tiny_config("no_latent_shortcuts")).eval()
    torch.nn.init.zeros_(model.decoder.conv_out.conv.weight)
    torch.nn.init.constant_(model.decoder.conv_out.conv.bias, 3.0)  # beyond white, so clamped to it
    report = reconstruction_report(model, torch.ones(4, 3, 16, 16))
    assert (report["psnr"], report["spectrum"], report["sharpness"]) == (100.0, [None] * 4, None)
    json.dumps(report, allow_nan=False)
