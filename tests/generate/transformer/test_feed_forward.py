"""Mix-FFN: local, and aware of the border."""

import pytest
import torch

from fewer.generate.transformer.feed_forward import MixFFN


def test_a_token_reaches_its_neighbours_alone():
    layer, tokens = MixFFN(6, 2.5), torch.randn(1, 5 * 7, 6)
    changed = tokens.clone()
    changed[0, 2 * 7 + 3] += 1.0
    moved = (layer(changed, (5, 7)) - layer(tokens, (5, 7))).abs().sum(-1).reshape(5, 7) > 0
    expected = torch.zeros(5, 7, dtype=torch.bool)
    expected[1:4, 2:5] = True
    assert torch.equal(moved, expected)


def test_equal_tokens_learn_where_the_border_is():
    result = MixFFN(4, 2.0)(torch.ones(1, 25, 4), (5, 5)).reshape(5, 5, 4)
    torch.testing.assert_close(result[1, 1], result[3, 3])
    assert not torch.allclose(result[0, 0], result[2, 2])


def test_hidden_width_is_rounded_down():
    assert MixFFN(5, 1.7).conv_depth.weight.shape == (16, 1, 3, 3)


@pytest.mark.parametrize(("batch", "grid"), [(1, (1, 1)), (3, (5, 7))])
def test_drawing_on_a_cpu_is_the_convolutions_as_they_are_trained(batch: int, grid: tuple[int, int]):
    layer, tokens = MixFFN(12, 2.5), torch.randn(batch, grid[0] * grid[1], 12)
    expected = layer(tokens, grid)
    assert expected.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(layer(tokens, grid), expected.detach(), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_what_is_hooked_to_a_layer_still_sees_its_picture():
    layer, seen = MixFFN(12, 2.5), []
    layer.conv_point.register_forward_hook(lambda module, given, result: seen.append(given[0].shape))
    layer(torch.randn(2, 6, 12), (2, 3))
    assert seen == [(2, 30, 2, 3)]
