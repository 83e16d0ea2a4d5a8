import pytest
import torch

from fewer.kernels import norms
from fewer.kernels.norms import gated_add, gated_add_norm, modulated_norm, rms_norm_add


@pytest.mark.parametrize("shape", [(1, 1, 5), (2, 3, 123)])
def test_modulated_norm_is_layer_norm_then_affine(shape: tuple, draw) -> None:
    x, shift, scale = draw(*shape), draw(shape[0], shape[2]), draw(shape[0], shape[2])
    out = modulated_norm(x, shift, scale)
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(out, expected * (1 + scale[:, None]) + shift[:, None], atol=1e-5)


@pytest.mark.parametrize("activation", ["none", "silu", "relu"])
@pytest.mark.parametrize("with_residual", [True, False])
def test_rms_norm_add_is_its_formula(activation: str, with_residual: bool, draw) -> None:
    x, weight, bias = draw(2, 3, 4, 37), draw(37), draw(37)
    residual = draw(2, 3, 4, 37) if with_residual else None
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias
    if activation != "none":
        expected = getattr(torch.nn.functional, activation)(expected)
    expected = expected + residual if residual is not None else expected
    assert torch.allclose(rms_norm_add(x, weight, bias, residual, activation), expected, atol=1e-5)


def test_a_gate_belongs_to_its_batch_and_the_norm_reads_the_sum(draw) -> None:
    rows, update, gate, shift, scale = draw(6, 5), draw(6, 5), draw(2, 5), draw(2, 5), draw(2, 5)
    expected = rows + gate.repeat_interleave(3, 0) * update
    assert torch.allclose(gated_add(rows, update, gate), expected, atol=1e-6)
    assert torch.allclose(gated_add(rows, update), rows + update, atol=1e-6)
    total, normed = gated_add_norm(rows, update, gate, shift, scale)
    assert torch.allclose(total, expected, atol=1e-6)
    assert torch.allclose(normed, modulated_norm(total.view(2, 3, 5), shift, scale).flatten(0, 1), atol=1e-5)


def test_operators_are_registered_properly(draw) -> None:
    rows, vector = draw(4, 8), draw(2, 8)
    torch.library.opcheck(torch.ops.fewer.gated_add, (rows, draw(4, 8), vector))
    torch.library.opcheck(torch.ops.fewer.gated_add_norm, (rows, draw(4, 8), None, vector, draw(2, 8), 1e-6))
    x = draw(1, 3, 8)
    torch.library.opcheck(torch.ops.fewer.modulated_norm, (x, draw(1, 8), draw(1, 8), 1e-6))
    torch.library.opcheck(torch.ops.fewer.rms_norm_add, (x, draw(8), draw(8), None, "silu", 1e-5))


def test_on_a_gpu_float64_stays_float64() -> None:
    """Kernels would compute in fp32: a thousandth of a millionth is kept, and no kernel is asked."""
    rows = 1 + 1e-9 * torch.arange(12, dtype=torch.float64).view(1, 2, 6)
    vector = torch.full((1, 6), 0.5, dtype=torch.float64)
    asked = {
        "modulated_norm": (rows, vector, vector, 0.0),
        "gated_add": (rows[0], rows[0], vector),
        "gated_add_norm": (rows[0], rows[0], None, vector, vector, 0.0),
        "rms_norm_add": (rows, vector[0], vector[0], None, "silu", 0.0),
    }
    for name, arguments in asked.items():
        reference = getattr(norms, f"reference_{name}")
        found, wanted = norms.on_gpu(name, reference, *arguments), reference(*arguments)
        both = (made if isinstance(made, tuple) else (made,) for made in (found, wanted))
        for one, other in zip(*both, strict=True):
            assert one.dtype == torch.float64 and torch.equal(one, other)
            assert len(one[..., 0, :].unique()) == 6  # what fp32 would have made equal
