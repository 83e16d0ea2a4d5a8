import pytest
import torch
import triton
import triton.language as tl

from fewer.kernels.triton.gates import silu


@triton.jit
def _silu_kernel(x, out, count, BLOCK: tl.constexpr, FAST: tl.constexpr):
    where = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + where, mask=where < count, other=0.0)
    tl.store(out + where, silu(v, FAST), mask=where < count)


@pytest.mark.parametrize("fast", [False, True])
def test_it_is_silu_and_the_fast_form_is_good_to_a_quarter_of_a_bf16_rounding(fast: bool, draw) -> None:
    if fast and not torch.cuda.is_available():
        pytest.skip("an instruction of a GPU")
    x = draw(123, scale=4.0)
    out = torch.empty_like(x)
    _silu_kernel[(1,)](x, out, 123, BLOCK=128, FAST=fast)
    limit = 2.0**-11 * x.abs() + 1e-6 if fast else torch.full_like(x, 1e-5)
    assert ((out - torch.nn.functional.silu(x)).abs() <= limit).all()
