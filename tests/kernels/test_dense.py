import pytest
import torch

from fewer.kernels.dense import activated_linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "dim", "outputs"), [(1, 8, 5), (5, 64, 136), (130, 72, 264)])
def test_it_is_a_layer_and_its_activation(
    dtype: torch.dtype, rows: int, dim: int, outputs: int, draw
) -> None:
    x, weight, bias = (
        draw(rows, dim, dtype=dtype),
        draw(outputs, dim, dtype=dtype, scale=0.1),
        draw(outputs, dtype=dtype),
    )
    for b in (None, bias):
        for activation in ("none", "silu"):
            found = activated_linear(x, weight, b, activation)
            wanted = x.float() @ weight.float().T + (0 if b is None else b.float())
            wanted = torch.nn.functional.silu(wanted) if activation == "silu" else wanted
            assert (found.float() - wanted).norm() < (
                1e-5 if dtype == torch.float32 else 1e-2
            ) * wanted.norm()


def test_operator_is_registered_properly(draw) -> None:
    torch.library.opcheck(torch.ops.fewer.activated_linear, (draw(3, 8), draw(4, 8), None, "silu"))
