import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.learn.distillation.formation import decode, encode


@pytest.mark.parametrize(("size", "factor"), [((8, 8), 2), ((28, 28), 2), ((9, 13), 3), ((5, 5), 2)])
def test_one_picture_becomes_factor_squared(size: tuple[int, int], factor: int) -> None:
    assert decode(torch.randn(3, 1, *size), factor).shape == (3 * factor**2, 1, *size)
    assert encode(torch.randn(factor**2, 1, *size), factor).shape == (1, 1, *size)


def test_smooth_pictures_survive_the_round_trip() -> None:
    ramp = torch.linspace(0, 1, 16)
    pictures = torch.stack([ramp.expand(16, 16), ramp[:, None].expand(16, 16)] * 2)[:, None]
    back = decode(encode(pictures, 2), 2)
    assert (back - pictures).abs()[:, :, 2:-2, 2:-2].max() < 0.04


def test_decoding_is_linear_and_factor_one_is_nothing() -> None:
    a, b = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(decode(a + 2 * b, 2), decode(a, 2) + 2 * decode(b, 2))
    assert decode(a, 1) is a and encode(a, 1) is a


def test_a_partly_filled_picture_is_refused() -> None:
    with pytest.raises(ConfigError, match="do not fill"):
        encode(torch.randn(3, 1, 8, 8), 2)
