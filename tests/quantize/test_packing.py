"""Every layout against its published index formula, by brute force, and back."""

from collections.abc import Callable

import pytest
import torch

from fewer.quantize import packing

OUT, DIM = 256, 128


def positions(rows: int, columns: int, formula: Callable[[int, int], int]) -> torch.Tensor:
    return torch.tensor([[formula(row, column) for column in range(columns)] for row in range(rows)])


def test_codes_lie_where_the_formula_says() -> None:
    codes = torch.randint(-8, 8, (OUT, DIM), dtype=torch.int8)
    packed = packing.pack_codes(codes)
    words = packed.view(torch.int32).flatten().to(torch.int64) & 0xFFFFFFFF
    tiles = DIM // 64
    for n, k in torch.cartesian_prod(torch.arange(0, OUT, 3), torch.arange(0, DIM, 5)).tolist():
        word = ((((n // 128 * tiles + k // 64) * 8 + (n % 128) // 16) * 8 + n % 8) * 4 + (k % 32) // 8) * 4
        word += ((n % 16) // 8) * 2 + (k % 64) // 32
        assert (words[word] >> (4 * (k % 8))) & 15 == int(codes[n, k]) & 15
    assert packed.shape == (OUT, DIM // 2) and packed.dtype == torch.int8
    assert torch.equal(packing.signed(packing.unpack_codes(packed)), codes)


def test_group_scales_and_vectors_lie_where_the_formula_says() -> None:
    groups = 3
    where = positions(
        OUT,
        groups,
        lambda n, g: (
            ((((n // 128 * groups + g) * 8 + (n % 128) // 16) * 4 + (n % 8) // 2) * 2 + (n % 16) // 8) * 2
            + n % 2
        ),
    )
    scales = torch.randn(OUT, groups).bfloat16()
    packed = packing.pack_scales(scales)
    assert packed.shape == (groups, OUT) and torch.equal(packed.flatten()[where], scales)
    assert torch.equal(packing.unpack_scales(packed), scales)
    order = packing.pack_vector(torch.arange(128.0))[:16].tolist()
    assert order == [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]
    assert torch.equal(packing.unpack_vector(packing.pack_vector(scales[:, 0])), scales[:, 0])


def test_float8_scales_lie_where_the_formula_says() -> None:
    groups = DIM // 16
    where = positions(
        OUT,
        groups,
        lambda n, g: (
            ((((n // 128 * (DIM // 64) + g // 4) * 8 + n % 8) * 4 + (n % 32) // 8) * 4 + (n % 128) // 32) * 4
            + g % 4
        ),
    )
    scales = torch.rand(OUT, groups).to(torch.float8_e4m3fn)
    packed = packing.pack_e4m3_scales(scales)
    assert packed.shape == (groups, OUT) and packed.dtype == torch.float8_e4m3fn
    assert torch.equal(packed.view(torch.uint8).flatten()[where], scales.view(torch.uint8))
    assert torch.equal(packing.unpack_e4m3_scales(packed).view(torch.uint8), scales.view(torch.uint8))


@pytest.mark.parametrize("rank", [16, 48])
def test_low_rank_factors_lie_where_the_formulas_say(rank: int) -> None:
    down, up = torch.randn(rank, DIM), torch.randn(OUT, rank)
    where = positions(
        rank,
        DIM,
        lambda r, c: (
            (((((c // 16 * (rank // 16) + r // 16) * 8 + r % 8) * 4 + (c % 8) // 2) * 2 + (r % 16) // 8) * 2
             + (c % 16) // 8) * 2 + c % 2
        ),
    )  # fmt: skip
    packed = packing.pack_down(down)
    assert packed.shape == (DIM, rank) and torch.equal(packed.flatten()[where], down)
    assert torch.equal(packing.unpack_down(packed), down)
    where = positions(
        OUT,
        rank,
        lambda c, r: (
            (((((c // 16 * (rank // 16) + r // 16) * 8 + c % 8) * 4 + (r % 8) // 2) * 2 + (c % 16) // 8) * 2
             + (r % 16) // 8) * 2 + r % 2
        ),
    )  # fmt: skip
    packed = packing.pack_up(up)
    assert packed.shape == (OUT, rank) and torch.equal(packed.flatten()[where], up)
    assert torch.equal(packing.unpack_up(packed), up)


def test_weight_only_values_lie_where_the_formula_says() -> None:
    values = torch.randint(0, 16, (8, DIM), dtype=torch.int8)
    packed = packing.pack_weight_only(values)
    assert packed.shape == (2, DIM // 2) and packed.dtype == torch.int32
    shorts = packed.view(torch.int16).reshape(2, DIM // 64, 4, 16).to(torch.int32) & 0xFFFF
    for n in range(8):
        for k in range(DIM):
            f = (k // 32) * 8 + k % 8
            assert (int(shorts[n // 4, f // 16, n % 4, f % 16]) >> (4 * ((k % 32) // 8))) & 15 == int(
                values[n, k]
            )
    assert torch.equal(packing.unpack_weight_only(packed), values)


@pytest.mark.parametrize("splits", [1, 3, 6])
def test_interleaving_puts_channel_c_of_chunk_j_at_c_times_splits_plus_j(splits: int) -> None:
    rows = torch.randn(splits * 5, 2)
    mixed = packing.interleave(rows, splits)
    for chunk in range(splits):
        for channel in range(5):
            assert torch.equal(mixed[channel * splits + chunk], rows[chunk * 5 + channel])
    assert torch.equal(packing.deinterleave(mixed, splits), rows)


def test_padding_keeps_the_corner_and_fills_the_rest() -> None:
    matrix = torch.ones(1, 5).to(torch.float8_e4m3fn)
    larger = packing.pad_matrix(matrix, 2, 8, 3.0)
    assert larger.dtype == matrix.dtype and larger.float().tolist() == [[1.0] * 5 + [3.0] * 3, [3.0] * 8]
    assert packing.padded(1, 16) == 16 and packing.padded(128, 128) == 128 and packing.padded(129, 128) == 256
