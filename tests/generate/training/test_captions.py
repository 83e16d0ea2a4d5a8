"""Caption weights against the figures of the published code and of the literal formula."""

import numpy as np
import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.generate.training.captions import caption_weights, draw_captions

SCORES = [26.0, 28.0, 30.0]


def test_the_power_form_gives_the_published_codes_weights() -> None:
    expected = np.array(SCORES) ** 10 / (np.array(SCORES) ** 10).sum()
    assert np.allclose(caption_weights(SCORES), expected)
    assert np.allclose(caption_weights(SCORES), [0.137, 0.288, 0.574], atol=1e-3)


def test_the_literal_softmax_takes_the_best_caption_alone() -> None:
    assert np.allclose(caption_weights(SCORES, "softmax", tau=0.1), [0, 0, 1], atol=1e-6)


@pytest.mark.parametrize("mode", ["power", "softmax"])
def test_drawn_captions_have_those_frequencies(mode: str) -> None:
    weights = caption_weights(SCORES, mode, tau=0.1 if mode == "power" else 2.0)
    generator = torch.Generator().manual_seed(0)
    drawn = draw_captions(weights, generator, 100_000)
    assert np.abs(np.bincount(drawn, minlength=3) / 100_000 - weights).max() < 0.01


def test_captions_below_the_threshold_are_never_drawn_unless_none_passes() -> None:
    assert caption_weights([24.9, 25.0])[0] == 0.0
    assert caption_weights([10.0, 20.0, 15.0]).tolist() == [0.0, 1.0, 0.0]


def test_scores_of_any_size_stay_finite() -> None:
    assert np.isfinite(caption_weights([1e30, 2e30], "power")).all()
    assert np.isfinite(caption_weights([1e4, 1.1e4], "softmax", tau=0.1)).all()


@pytest.mark.parametrize("scores", [[], [0.0], [-1.0, 30.0], [float("nan")]])
def test_bad_scores_are_refused(scores: list[float]) -> None:
    with pytest.raises(ConfigError):
        caption_weights(scores)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="tau"):
        caption_weights(SCORES, tau=0.0)
