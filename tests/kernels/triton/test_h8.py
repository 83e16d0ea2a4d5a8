import pytest
import torch

from fewer.kernels.h8 import pack_h8, reference_decode_h8, reference_int8_linear


def integers(device: torch.device, low: int, high: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).to(device)


@pytest.mark.parametrize(("rows", "dim"), [(1, 64), (5, 128), (33, 192)])
def test_expansion_is_exact(rows: int, dim: int, device: torch.device) -> None:
    from fewer.kernels.triton.h8 import launch_expand_h8

    codes = integers(device, -7, 8, rows, dim).to(torch.int8)
    scales = integers(device, 1, 19, rows, dim // 64).to(torch.uint8)
    out = torch.full((rows, dim), 99, dtype=torch.int8, device=device)
    launch_expand_h8(pack_h8(codes), scales, out)
    expected = codes.view(rows, -1, 64).int() * scales[:, :, None].int()
    assert torch.equal(out.int(), expected.view(rows, dim))


@pytest.mark.parametrize(("rows", "outputs", "dim"), [(1, 5, 64), (37, 40, 128), (64, 33, 192)])
def test_integer_accumulator_is_exact(rows: int, outputs: int, dim: int, device: torch.device) -> None:
    from fewer.kernels.triton.h8 import launch_int8_linear

    codes = integers(device, -127, 128, rows, dim).to(torch.int8)
    weight = integers(device, -126, 127, outputs, dim, seed=1).to(torch.int8)
    one = torch.ones(max(rows, outputs), device=device)
    out = launch_int8_linear(
        codes,
        one[:rows],
        weight,
        one[:outputs],
        None,
        None,
        None,
        "none",
        None,
        None,
        torch.float32,
        (32, 32, 64),
    )
    assert torch.equal(out.long().cpu(), codes.cpu().long() @ weight.cpu().long().T)


@pytest.mark.filterwarnings("ignore:overflow")  # exp of a large number is inf, and 1/inf the right 0
@pytest.mark.parametrize("activation", ["none", "silu", "gelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_epilogue_agrees_with_the_reference(activation: str, dtype: torch.dtype, draw) -> None:
    from fewer.kernels.triton.h8 import launch_int8_linear

    device = draw(1).device
    rows, outputs, dim, rank = 38, 45, 128, 20
    codes = integers(device, -127, 128, rows, dim).to(torch.int8)
    weight = integers(device, -126, 127, outputs, dim, seed=1).to(torch.int8)
    arguments = (
        codes, draw(rows).abs() / 500, weight, draw(outputs).abs() / 50, draw(outputs), draw(rows, rank),
        draw(outputs, rank, dtype=dtype), activation, draw(2, outputs, dtype=dtype),
        draw(rows, outputs, dtype=dtype), dtype,
    )  # fmt: skip
    out, wanted = launch_int8_linear(*arguments, (32, 32, 64)), reference_int8_linear(*arguments)
    assert out.dtype == dtype
    error = (out.float() - wanted.float()).norm() / wanted.float().norm()
    assert error < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize(("rows", "dim", "rank"), [(1, 64, 16), (37, 192, 32)])
def test_decoding_to_whole_steps(rows: int, dim: int, rank: int, draw) -> None:
    from fewer.kernels.triton.h8 import launch_decode_h8

    device = draw(1).device
    packed = pack_h8(integers(device, -7, 8, rows, dim).to(torch.int8))
    scales = integers(device, 1, 19, rows, dim // 64).to(torch.uint8)
    branch = draw(rank, dim, dtype=torch.bfloat16), draw(rows, rank, dtype=torch.bfloat16)
    arguments, wide = (packed, scales, draw(rows).abs() / 50, None, *branch), draw(rows, dim)
    reference_decode_h8(*arguments, wide)
    step = wide.abs().amax(1) / 127
    step[0] = 0  # a row of zeros has no step
    out, wanted = (torch.full((rows, dim), 99, dtype=torch.int8, device=device) for _ in range(2))
    launch_decode_h8(*arguments, out, step, block=16)
    reference_decode_h8(*arguments, wanted, step)
    assert (out.int() - wanted.int()).abs().max() <= 1
    assert (out != wanted).float().mean() < 1e-3
    assert ((wanted[1:].float() * step[1:, None] - wide[1:]).abs() <= 0.5001 * step[1:, None]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "dim", "rank"), [(1, 64, 0), (5, 128, 20), (37, 192, 32)])
def test_decoding(dtype: torch.dtype, rows: int, dim: int, rank: int, draw) -> None:
    from fewer.kernels.triton.h8 import launch_decode_h8

    device = draw(1).device
    packed = pack_h8(integers(device, -7, 8, rows, dim).to(torch.int8))
    scales = integers(device, 1, 19, rows, dim // 64).to(torch.uint8)
    smooth = None if rank == 20 else draw(dim).abs() + 0.5
    down, up = (draw(rank, dim, dtype=dtype), draw(rows, rank, dtype=dtype)) if rank else (None, None)
    arguments = (packed, scales, draw(rows).abs() / 50, smooth, down, up)
    out, wanted = (torch.full((rows, dim), torch.nan, dtype=dtype, device=device) for _ in range(2))
    launch_decode_h8(*arguments, out, block=16)
    reference_decode_h8(*arguments, wanted)
    error = (out.float() - wanted.float()).norm() / wanted.float().norm()
    assert error < (1e-5 if dtype == torch.float32 else 1e-2)
