import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.generate.conditional.bricks import (
    FeedForward,
    SoftmaxAttention,
    as_grid,
    as_tokens,
    check_labels,
    make_identity,
    unpatchify,
)


def test_an_identity_convolution_changes_nothing_and_others_skip_extra_tokens() -> None:
    with_conv = FeedForward(8, 2.0, True, "tanh")
    without = FeedForward(8, 2.0, False, "tanh")
    without.load_state_dict(with_conv.state_dict(), strict=False)
    tokens = torch.randn(2, 2 + 9, 8)
    assert torch.allclose(with_conv(tokens, 2)[:, :2], without(tokens)[:, :2], atol=1e-6)
    assert not torch.allclose(with_conv(tokens, 2)[:, 2:], without(tokens)[:, 2:], atol=1e-3)
    make_identity(with_conv.dwconv)
    assert torch.equal(with_conv(tokens, 2), without(tokens))


def test_grid_and_patches() -> None:
    tokens = torch.randn(2, 9, 4)
    assert torch.equal(as_tokens(as_grid(tokens)), tokens)
    picture = unpatchify(tokens, 2)
    assert picture.shape == (2, 1, 6, 6) and picture[0, 0, 2, 5] == tokens[0, 5, 1]


def test_attention_does_not_mind_order() -> None:
    attention, order = SoftmaxAttention(8, 2, True), torch.randperm(5)
    tokens = torch.randn(1, 5, 8)
    assert torch.allclose(attention(tokens)[:, order], attention(tokens[:, order]), atol=1e-5)


def test_labels_out_of_range() -> None:
    check_labels(torch.tensor([0, 3]), 3)
    with pytest.raises(ConfigError, match="class 4 is out of range; allowed: 0 to 2, and 3"):
        check_labels(torch.tensor([0, 4]), 3)
