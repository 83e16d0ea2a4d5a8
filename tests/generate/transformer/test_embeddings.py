"""Positions and sinusoids against diffusers' formulas."""

import pytest
import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed, get_timestep_embedding

from fewer.generate.transformer.embeddings import (
    GuidedTimeEmbedding,
    TimeEmbedding,
    sincos_positions,
    sinusoid,
)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (1, 5), (5, 1), (12, 3)])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_positions_equal_diffusers(height, width, scale):
    theirs = get_2d_sincos_pos_embed(
        24, (height, width), base_size=8, interpolation_scale=scale, output_type="pt"
    )
    ours = sincos_positions(height, width, 24, 8, scale)
    torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=1e-6)


def test_the_column_fills_the_first_half():
    grid = sincos_positions(3, 4, 16, 4, 1.0).reshape(3, 4, 16)
    assert torch.equal(grid[0, :, :8], grid[2, :, :8])
    assert torch.equal(grid[:, 0, 8:], grid[:, 3, 8:])
    assert not torch.equal(grid[:, 0, :8], grid[:, 1, :8])


def test_a_larger_grid_spans_the_same_range():
    small, large = sincos_positions(4, 4, 8, 4, 1.0), sincos_positions(8, 8, 8, 4, 1.0)
    torch.testing.assert_close(large.reshape(8, 8, 8)[::2, ::2], small.reshape(4, 4, 8))


def test_sinusoid_equals_diffusers():
    times = torch.tensor([0.0, 0.37, 136.0, 999.0])
    theirs = get_timestep_embedding(times, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(sinusoid(times), theirs, rtol=0, atol=1e-6)


def test_guidance_is_asked_for_where_it_is_needed():
    times = torch.tensor([0.5])
    assert TimeEmbedding(8)(times)[0].shape == (1, 6, 8)
    assert GuidedTimeEmbedding(8)(times, times)[0].shape == (1, 6, 8)
    with pytest.raises(AssertionError, match="needs a guidance"):
        GuidedTimeEmbedding(8)(times)
    with pytest.raises(AssertionError, match="no guidance"):
        TimeEmbedding(8)(times, times)
