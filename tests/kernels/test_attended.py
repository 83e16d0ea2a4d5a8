import pytest
import torch

from fewer.kernels.attended import attended_int8, fits_attended, order_of_heads, reference_attended_int8
from fewer.kernels.linear_attention import reference_linear_attention


def operands(rows: int, dim: int, heads: int, device: torch.device, bias: bool = True) -> tuple:
    generator = torch.Generator().manual_seed(rows)
    outputs = 96 * heads
    codes = torch.randint(-127, 128, (rows, dim), dtype=torch.int8, generator=generator)
    weight = torch.randint(-126, 127, (outputs, dim), dtype=torch.int8, generator=generator)
    row_scale, step, bias_ = (torch.randn(size, generator=generator) for size in (rows, outputs, outputs))
    scaled = row_scale.abs() / 500, step.abs() / 50 / dim
    tensors = [part.to(device) for part in (codes, scaled[0], weight, scaled[1])]
    return (*tensors, bias_.to(device) if bias else None)


@pytest.mark.parametrize("heads", [2, 4, 36])
def test_two_heads_of_keys_and_values_stand_side_by_side_and_queries_come_last(heads: int) -> None:
    inner, order = 32 * heads, order_of_heads(heads)
    assert torch.equal(order.sort().values, torch.arange(3 * inner))
    assert torch.equal(order[2 * inner :], torch.arange(inner))
    for pair in range(heads // 2):
        tile = order[128 * pair : 128 * pair + 128]
        keys = inner + 64 * pair + torch.arange(64)
        assert torch.equal(tile, torch.cat([keys, keys + inner]))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("batch", "tokens", "dim", "heads"), [(1, 1, 64, 2), (2, 5, 128, 4), (3, 7, 64, 2)])
def test_it_is_the_product_and_then_linear_attention(
    batch: int, tokens: int, dim: int, heads: int, bias: bool
) -> None:
    codes, row_scale, weight, step, shift = operands(batch * tokens, dim, heads, torch.device("cpu"), bias)
    # The oracle's rows stand as a model has them; the operator's in the kernel's order.
    joint = (codes.double() @ weight.double().T) * row_scale.double()[:, None] * step.double()
    joint = joint if shift is None else joint + shift.double()
    query, key, value = joint.view(batch, tokens, 3, heads, 32).unbind(2)
    wanted = reference_linear_attention(query, key, value, 1e-15).flatten(2).flatten(0, 1)
    order = order_of_heads(heads)
    found = attended_int8(
        codes, row_scale, weight[order], step[order], None if shift is None else shift[order], heads, batch,
        dtype=torch.float32,
    )  # fmt: skip
    assert (found - wanted).norm() < 1e-4 * wanted.norm()


def test_odd_heads_no_rows_and_single_rows_of_a_gpu_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.zeros(6, 64)
    assert fits_attended(rows, 2, 2) and not fits_attended(rows, 3, 2) and not fits_attended(rows[:0], 2, 1)


def test_the_operator_is_registered_properly() -> None:
    arguments = (*operands(6, 64, 2, torch.device("cpu")), 2, 2, 1e-15, torch.float32)
    torch.library.opcheck(torch.ops.fewer.attended_int8, arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a Hopper GPU")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("batch", "tokens", "dim", "heads"),
    [(1, 128, 64, 2), (2, 256, 192, 6), (2, 1024, 1152, 36), (1, 2048, 320, 70)],
)
def test_the_kernels_agree_with_the_reference(
    batch: int, tokens: int, dim: int, heads: int, bias: bool, device: torch.device
) -> None:
    if not fits_attended(torch.zeros(batch * tokens, 1, dtype=torch.bfloat16, device=device), heads, batch):
        pytest.skip("needs a Hopper GPU")
    arguments = (*operands(batch * tokens, dim, heads, device, bias), heads, batch, 1e-15, torch.bfloat16)
    found = attended_int8(*arguments[:-2], dtype=torch.bfloat16)
    wanted = reference_attended_int8(*arguments)
    assert (found.float() - wanted.float()).norm() < 1e-2 * wanted.float().norm()
    assert torch.equal(found, attended_int8(*arguments[:-2], dtype=torch.bfloat16))
