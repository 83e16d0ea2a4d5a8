import pytest
import torch

from fewer.kernels.h8 import accumulate_int8, expand_h8, int8_linear, pack_h8, unpack_h8


def codes_and_scales(rows: int, dim: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-7, 8, (rows, dim), generator=generator).to(torch.int8)
    scales = torch.randint(1, 19, (rows, dim // 64), generator=generator).to(torch.uint8)
    return codes, scales


@pytest.mark.parametrize(("rows", "dim"), [(1, 64), (5, 128), (123, 192)])
def test_packing_round_trips_and_halves_the_bytes(rows: int, dim: int) -> None:
    codes, _ = codes_and_scales(rows, dim)
    packed = pack_h8(codes)
    assert packed.numel() * 2 == codes.numel()
    assert torch.equal(unpack_h8(packed), codes)


def test_layout_is_the_published_one() -> None:
    codes = torch.zeros(1, 64, dtype=torch.int8)
    codes[0, 3], codes[0, 35] = -7, 7
    packed = pack_h8(codes)
    assert packed[0, 3].item() == 1 | (15 << 4)
    assert packed[0, 4].item() == 8 | (8 << 4)


def test_expansion_is_code_times_group_scale_for_every_pair() -> None:
    pairs = torch.cartesian_prod(torch.arange(-7, 8), torch.arange(1, 19))
    codes = pairs[:, :1].repeat(1, 64).to(torch.int8)
    weights = expand_h8(pack_h8(codes), pairs[:, 1:].to(torch.uint8))
    assert torch.equal(weights.int(), (pairs[:, :1] * pairs[:, 1:]).int().repeat(1, 64))
    # The register form of svdquant §2.10, four bytes at once in one multiply-add and one xor.
    u, t = pairs[:, 0] + 8, pairs[:, 1]
    word = (u * 0x01010101 * t + 0x01010101 * ((128 - 8 * t) % 2**32)) % 2**32 ^ 0x80808080
    lowest = ((word & 0xFF) + 128) % 256 - 128
    assert torch.equal(lowest, pairs[:, 0] * pairs[:, 1])


def test_integer_accumulators_are_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-127, 128, (5, 4096), generator=generator).to(torch.int8)
    b = torch.randint(-126, 127, (7, 4096), generator=generator).to(torch.int8)
    assert torch.equal(accumulate_int8(a, b).long(), a.long() @ b.long().T)


@pytest.mark.parametrize("activation", ["none", "silu", "gelu"])
def test_epilogue_is_its_formula(activation: str, draw) -> None:
    codes, scales = codes_and_scales(12, 64)
    weight = expand_h8(pack_h8(codes), scales)
    x = torch.randint(-127, 128, (6, 64), generator=torch.Generator().manual_seed(1)).to(torch.int8)
    row, column = torch.rand(6), torch.rand(12)
    bias, gate, residual = torch.randn(12), torch.randn(2, 12), torch.randn(6, 12)
    down, up = torch.randn(6, 4), torch.randn(12, 4)
    out = int8_linear(
        x, row, weight, column, bias=bias, projected=down, up=up, activation=activation, gate=gate,
        residual=residual, dtype=torch.float32,
    )  # fmt: skip
    y = (
        (x.double() * row[:, None]) @ (weight.double() * column[:, None]).T
        + down.double() @ up.double().T
        + bias
    )
    if activation != "none":
        extra = {"approximate": "tanh"} if activation == "gelu" else {}
        y = getattr(torch.nn.functional, activation)(y, **extra)
    y = residual + gate.repeat_interleave(3, 0) * y
    assert torch.allclose(out.double(), y, rtol=1e-5, atol=1e-5)


def test_columns_that_fit_no_group_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 64"):
        pack_h8(torch.zeros(2, 65, dtype=torch.int8))


def test_no_rows() -> None:
    weight = torch.zeros(4, 64, dtype=torch.int8)
    out = int8_linear(torch.zeros(0, 64, dtype=torch.int8), torch.zeros(0), weight, torch.ones(4))
    assert out.shape == (0, 4)


def test_operators_are_registered_properly() -> None:
    codes, scales = codes_and_scales(4, 64)
    torch.library.opcheck(
        torch.ops.fewer.expand_h8, (pack_h8(codes), scales, torch.empty(4, 64, dtype=torch.int8))
    )
    arguments = (
        codes,
        torch.rand(4),
        codes.clone(),
        torch.rand(4),
        None,
        None,
        None,
        "silu",
        None,
        None,
        torch.float32,
    )
    torch.library.opcheck(torch.ops.fewer.int8_linear, arguments)


def test_a_result_goes_into_some_rows_of_a_larger_tensor(device: torch.device) -> None:
    codes, weight = (torch.randint(-127, 128, (n, 64), dtype=torch.int8).to(device) for n in (4, 5))
    row_scale, column_scale, gate, residual = (
        torch.rand(shape).to(device) for shape in ((4,), (5,), (2, 5), (4, 5))
    )
    operands = (codes, row_scale, weight, column_scale)
    for around in ({}, {"gate": gate}, {"gate": gate, "residual": residual, "activation": "gelu"}):
        whole = torch.full((7, 5), 3.0, device=device)
        found = int8_linear(*operands, **around, out=whole[2:6])
        wanted = int8_linear(*operands, **around, dtype=torch.float32)
        assert torch.allclose(whole[2:6], wanted, rtol=1e-5) and found.data_ptr() == whole[2:].data_ptr()
        assert (whole[:2] == 3).all() and (whole[6:] == 3).all()
    with pytest.raises(ValueError, match="contiguous"):
        int8_linear(*operands, out=torch.empty(5, 4, device=device).T)
    torch.library.opcheck(
        torch.ops.fewer.int8_linear_into, (*operands, None, None, None, "none", None, None, whole[2:6])
    )
