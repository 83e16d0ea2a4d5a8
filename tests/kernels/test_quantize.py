import pytest
import torch

from fewer.kernels.quantize import quantize_rows


@pytest.mark.parametrize("shape", [(1, 1), (5, 64), (7, 123)])
def test_codes_are_within_half_a_step(shape: tuple, draw) -> None:
    x = draw(*shape)
    result = quantize_rows(x)
    back = result.codes.float() * result.scale[:, None]
    assert result.codes.abs().max() <= 127 and result.projected is None
    assert ((back - x).abs() <= result.scale[:, None] * 0.5001).all()


def test_smoothing_divides_before_the_codes_and_not_before_the_projection(draw) -> None:
    x, smooth, down = draw(6, 32), draw(32).abs() + 0.5, draw(4, 32)
    result = quantize_rows(x, smooth, down)
    plain = quantize_rows(x / smooth)
    assert torch.allclose(result.scale, plain.scale, rtol=1e-6)
    assert (result.codes.int() - plain.codes.int()).abs().max() <= 1
    assert result.projected is not None and torch.allclose(result.projected, x @ down.T, atol=1e-4)


def test_norm_and_modulation_come_first_and_every_batch_has_its_own(draw) -> None:
    x, shift, scale = draw(2, 5, 16), draw(2, 16), draw(2, 16)
    normed = torch.nn.functional.layer_norm(x, (16,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
    result = quantize_rows(x.flatten(0, 1), None, None, shift, scale)
    assert torch.allclose(result.scale, normed.flatten(0, 1).abs().amax(1) / 127, rtol=1e-5)


def test_a_sum_before_the_codes(draw) -> None:
    x, update, gate = draw(6, 16), draw(6, 16), draw(2, 16)
    result = quantize_rows(x, update=update, gate=gate)
    assert torch.allclose(result.total, x + gate.repeat_interleave(3, 0) * update, atol=1e-6)
    assert torch.allclose(result.scale, result.total.abs().amax(1) / 127, rtol=1e-5)
    assert quantize_rows(x).total is x


def test_zero_rows_and_no_rows() -> None:
    result = quantize_rows(torch.zeros(3, 8))
    assert result.codes.eq(0).all() and result.scale.eq(0).all()
    assert quantize_rows(torch.zeros(0, 8)).codes.shape == (0, 8)


def test_operator_is_registered_properly(draw) -> None:
    torch.library.opcheck(
        torch.ops.fewer.quantize_rows,
        (draw(4, 8), draw(8).abs() + 1, draw(2, 8), None, None, 1e-6, None, None),
    )
    torch.library.opcheck(
        torch.ops.fewer.quantize_rows,
        (draw(4, 8), None, None, draw(2, 8), draw(2, 8), 1e-6, draw(4, 8), draw(2, 8)),
    )
