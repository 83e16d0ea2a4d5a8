"""The bricks: the worked example of the shortcuts, the quadratic form of the attention, norms."""

import pytest
import torch
from torch import nn

from fewer.generate.autoencoder.blocks import (
    ChannelRMSNorm,
    DownBlock,
    EfficientViTBlock,
    LinearAttention,
    ResBlock,
    UpBlock,
    average_channels,
    down_shortcut,
    repeat_channels,
    up_shortcut,
)

from .conftest import perturb


def test_shortcuts_of_the_worked_example() -> None:
    x = torch.arange(8.0).reshape(1, 2, 2, 2)
    assert down_shortcut(x, 4).flatten().tolist() == [0.5, 2.5, 4.5, 6.5]
    up = up_shortcut(torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1), 2)
    assert up[0].tolist() == [[[1, 1], [2, 2]], [[3, 3], [4, 4]]]


def test_repeating_then_averaging_is_identity() -> None:
    x = torch.randn(2, 3, 5, 1)
    assert torch.allclose(average_channels(repeat_channels(x, 12), 3), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (2, 8, 5, 3), (0, 8, 2, 2)])
def test_norm_is_rms_over_channels_with_bias(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    norm = ChannelRMSNorm(8).to(dtype)
    perturb(norm)
    x = torch.randn(shape).to(dtype)
    wide = x.double()
    expected = wide / (wide.square().mean(1, keepdim=True) + 1e-5).sqrt()
    expected = expected * norm.weight.double()[:, None, None] + norm.bias.double()[:, None, None]
    assert norm(x).dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype, 4e-2)
    assert torch.allclose(norm(x).double(), expected, atol=tolerance)


@pytest.mark.parametrize("scales", [(), (5,), (3, 7)])
@pytest.mark.parametrize("side", [(1, 1), (2, 3), (9, 5)])
def test_attention_equals_the_quadratic_form(scales: tuple[int, ...], side: tuple[int, int]) -> None:
    attention = LinearAttention(24, 8, scales, "rms_norm").double()
    perturb(attention)
    x = torch.randn(2, 24, *side, dtype=torch.float64)
    query, key, value = attention.split_heads(attention.project(x))
    weight = query.transpose(-1, -2) @ key  # every pair of pixels
    weight = weight / (weight.sum(-1, keepdim=True) + 1e-15)
    expected = attention.finish(value @ weight.transpose(-1, -2), side[0], x.dtype)
    assert torch.allclose(attention(x), expected, atol=1e-10)


def test_heads_are_runs_of_the_joint_projection() -> None:
    """With head_dim 2 and width 4, head 0 takes q, k, v from rows 0-1, 2-3, 4-5 of the joint matrix."""
    attention = LinearAttention(4, 2, (), "rms_norm")
    x = torch.rand(1, 4, 1, 1)
    joint = torch.cat([attention.to_q.weight, attention.to_k.weight, attention.to_v.weight]) @ x.flatten()
    query, key, value = attention.split_heads(attention.project(x))
    assert torch.allclose(query[0, 0, :, 0], joint[0:2].relu())
    assert torch.allclose(key[0, 0, :, 0], joint[2:4].relu())
    assert torch.allclose(value[0, 1, :, 0], joint[10:12])


def test_attention_survives_zero_queries_and_large_half_precision() -> None:
    attention = LinearAttention(16, 8, (), "rms_norm")
    assert torch.equal(
        attention.read(torch.zeros(1, 2, 8, 5), torch.rand(1, 2, 9, 8)), torch.zeros(1, 2, 8, 5)
    )
    half = LinearAttention(16, 8, (), "rms_norm").to(torch.float16)
    assert torch.isfinite(half(torch.full((1, 16, 128, 128), 100.0, dtype=torch.float16))).all()


def test_attention_does_not_care_about_the_order_of_pixels() -> None:
    attention = LinearAttention(16, 8, (), "rms_norm").double()
    x = torch.randn(1, 16, 3, 4, dtype=torch.float64)
    order = torch.randperm(12)
    shuffled = x.flatten(2)[:, :, order].reshape(x.shape)
    assert torch.allclose(attention(shuffled).flatten(2), attention(x).flatten(2)[:, :, order])


@pytest.mark.parametrize("block", [ResBlock(8), EfficientViTBlock(8, 8, (3,))])
def test_blocks_with_zero_convolutions_are_identities(block: nn.Module) -> None:
    for parameter in block.parameters():
        if parameter.ndim > 1:
            nn.init.zeros_(parameter)
    x = torch.randn(1, 8, 5, 3)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize("kind", ["pixel_unshuffle", "conv"])
def test_down_block_halves(kind: str, shortcut: bool) -> None:
    block = DownBlock(4, 8, kind, shortcut)
    x = torch.randn(1, 4, 6, 10)
    assert block(x).shape == (1, 8, 3, 5)
    nn.init.zeros_(block.conv.weight)
    nn.init.zeros_(block.conv.bias)
    assert torch.equal(block(x), down_shortcut(x, 8) if shortcut else torch.zeros(1, 8, 3, 5))


@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize("kind", ["pixel_shuffle", "interpolate"])
def test_up_block_doubles(kind: str, shortcut: bool) -> None:
    block = UpBlock(8, 4, kind, shortcut)
    x = torch.randn(1, 8, 3, 5)
    assert block(x).shape == (1, 4, 6, 10)
    nn.init.zeros_(block.conv.weight)
    nn.init.zeros_(block.conv.bias)
    assert torch.equal(block(x), up_shortcut(x, 4) if shortcut else torch.zeros(1, 4, 6, 10))
