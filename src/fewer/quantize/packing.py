"""The published engine's tensor layouts, as permutations of axes: what its warps read in one go lies
together.

Each function has its inverse. `rearrange` names the digits of the indices: an output channel n is
(block of 128, 16-row slab, half, row), an input channel k is (block of 64, half of 32, octet, nibble).
Facts: the layouts of Nunchaku v1 files; the tests check every one against its index formula.
"""

import torch
from einops import rearrange
from jaxtyping import Int8
from torch import Tensor
from torch.nn import functional

ROWS, COLUMNS, RANKS = 128, 128, 16


def padded(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple


def pad_matrix(matrix: Tensor, rows: int, columns: int, fill: float = 0.0) -> Tensor:
    """A [rows, columns] matrix with `matrix` in its corner and `fill` elsewhere (any dtype, float8 too)."""
    if tuple(matrix.shape) == (rows, columns):
        return matrix
    missing = (0, columns - matrix.shape[1], 0, rows - matrix.shape[0])
    if matrix.dtype == torch.float8_e4m3fn:
        return functional.pad(matrix.float(), missing, value=fill).to(matrix.dtype)
    return functional.pad(matrix, missing, value=fill)


def pack_codes(codes: Int8[Tensor, "out dim"]) -> Int8[Tensor, "out half"]:
    """4-bit codes (two's complement or e2m1) for the 4-bit matrix instruction; sides are multiples of 128."""
    out, dim = codes.shape
    digits = rearrange(
        codes.to(torch.int32) & 15,
        "(N a b c) (K d e f) -> N K a c e b d f",
        a=8, b=2, c=8, d=2, e=4, f=8,
    )  # fmt: skip
    return _join(digits, torch.int32).view(torch.int8).reshape(out, dim // 2)


def unpack_codes(packed: Int8[Tensor, "out half"]) -> Int8[Tensor, "out dim"]:
    """The inverse of `pack_codes`; codes come back as 0..15."""
    out, half = packed.shape
    words = packed.contiguous().view(torch.int32).reshape(out // 128, half * 2 // 64, 8, 8, 4, 2, 2)
    nibbles = torch.stack([(words >> (4 * index)) & 15 for index in range(8)], dim=-1)
    return rearrange(nibbles, "N K a c e b d f -> (N a b c) (K d e f)").to(torch.int8)


def signed(codes: Int8[Tensor, "*shape"]) -> Int8[Tensor, "*shape"]:
    """0..15 as two's complement: -8..7."""
    return torch.where(codes > 7, codes - 16, codes).to(torch.int8)


def pack_scales(scales: Tensor) -> Tensor:
    """[out, groups] 16-bit group scales -> [groups, out]; bias and smoothing scales are the case of one
    group.
    """
    out, groups = scales.shape
    return rearrange(scales, "(N a b c d) g -> N g a c b d", a=8, b=2, c=4, d=2).reshape(groups, out)


def unpack_scales(packed: Tensor) -> Tensor:
    """The inverse of `pack_scales`."""
    groups, out = packed.shape
    digits = packed.reshape(out // 128, groups, 8, 4, 2, 2)
    return rearrange(digits, "N g a c b d -> (N a b c d) g")


def pack_vector(vector: Tensor) -> Tensor:
    """[out] -> [out], in the order 0 1 8 9 2 3 10 11 4 5 12 13 6 7 14 15 within every 16."""
    return pack_scales(vector[:, None]).reshape(-1)


def unpack_vector(packed: Tensor) -> Tensor:
    """The inverse of `pack_vector`."""
    return unpack_scales(packed[None]).reshape(-1)


def pack_e4m3_scales(scales: Tensor) -> Tensor:
    """[out, groups of 16] float8 scales -> [groups, out]."""
    out, groups = scales.shape
    digits = rearrange(scales.view(torch.uint8), "(N a b c) (G h) -> N G c b a h", a=4, b=4, c=8, h=4)
    return digits.reshape(groups, out).view(scales.dtype)


def unpack_e4m3_scales(packed: Tensor) -> Tensor:
    """The inverse of `pack_e4m3_scales`."""
    groups, out = packed.shape
    digits = packed.view(torch.uint8).reshape(out // 128, groups // 4, 8, 4, 4, 4)
    return rearrange(digits, "N G c b a h -> (N a b c) (G h)").contiguous().view(packed.dtype)


def pack_down(down: Tensor) -> Tensor:
    """[rank, dim] down projection -> [dim, rank]."""
    rank, dim = down.shape
    return rearrange(down, "(R a b) (C d e f) -> C R b e a d f", a=2, b=8, d=2, e=4, f=2).reshape(dim, rank)


def unpack_down(packed: Tensor) -> Tensor:
    """The inverse of `pack_down`."""
    dim, rank = packed.shape
    digits = packed.reshape(dim // 16, rank // 16, 8, 4, 2, 2, 2)
    return rearrange(digits, "C R b e a d f -> (R a b) (C d e f)")


def pack_up(up: Tensor) -> Tensor:
    """[out, rank] up projection -> [out, rank]."""
    return rearrange(up, "(C a b) (R d e f) -> C R b e a d f", a=2, b=8, d=2, e=4, f=2).reshape(up.shape)


def unpack_up(packed: Tensor) -> Tensor:
    """The inverse of `pack_up`."""
    out, rank = packed.shape
    digits = packed.reshape(out // 16, rank // 16, 8, 4, 2, 2, 2)
    return rearrange(digits, "C R b e a d f -> (C a b) (R d e f)")


def pack_weight_only(values: Int8[Tensor, "out dim"]) -> Tensor:
    """W4A16 values 0..15 -> int32 [out / 4, dim / 2]; out is a multiple of 4, dim of 64."""
    out, dim = values.shape
    digits = rearrange(values.to(torch.int32), "(n a) (K d e f) -> n K a d f e", a=4, d=2, e=4, f=8)
    shorts = _join(digits, torch.int16).contiguous()
    return shorts.view(torch.int32).reshape(out // 4, dim // 2)


def unpack_weight_only(packed: Tensor) -> Int8[Tensor, "out dim"]:
    """The inverse of `pack_weight_only`."""
    quarter, half = packed.shape
    shorts = packed.contiguous().view(torch.int16).to(torch.int32).reshape(quarter, half * 2 // 64, 4, 2, 8)
    nibbles = torch.stack([(shorts >> (4 * index)) & 15 for index in range(4)], dim=-1)
    return rearrange(nibbles, "n K a d f e -> (n a) (K d e f)").to(torch.int8)


def interleave(rows: Tensor, splits: int) -> Tensor:
    """Modulation rows chunk by chunk -> channel by channel: channel c of chunk j goes to row c * splits +
    j.
    """
    return rows.unflatten(0, (splits, -1)).transpose(0, 1).flatten(0, 1).contiguous()


def deinterleave(rows: Tensor, splits: int) -> Tensor:
    """The inverse of `interleave`."""
    return rows.unflatten(0, (-1, splits)).transpose(0, 1).flatten(0, 1).contiguous()


def _join(nibbles: Tensor, dtype: torch.dtype) -> Tensor:
    """The last axis, lowest nibble first, into one integer of `dtype` (wrapping into the sign bit)."""
    total = torch.zeros(nibbles.shape[:-1], dtype=torch.int64)
    for index in range(nibbles.shape[-1]):
        total |= nibbles[..., index].to(torch.int64) << (4 * index)
    bits = torch.iinfo(dtype).bits
    return torch.where(total >= 2 ** (bits - 1), total - 2**bits, total).to(dtype)
