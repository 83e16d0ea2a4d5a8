"""SiLU on the GPU by one instruction of its slow unit: x · (1 + tanh(x / 2)) / 2.

The plain form takes two (a power and a reciprocal), and kernels with little else to do wait for them. The
hardware's tanh is good to 2⁻¹¹, a quarter of what rounding to bf16 loses; wider types take the plain form.
"""

import triton
import triton.language as tl


@triton.jit
def silu(x, FAST: tl.constexpr):
    """x · sigmoid(x) in fp32; `FAST` (CUDA only) is for results that are rounded to 16 bits."""
    if FAST:
        half = 0.5 * x
        turn = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [half], dtype=tl.float32, is_pure=True, pack=1
        )
        y = half * turn + half
    else:
        y = x / (1.0 + tl.exp(-x))
    return y
