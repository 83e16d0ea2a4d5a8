# type: ignore
# Gluon functions look like Python and are not: a type checker cannot read them.
"""What the kernels for Hopper share: renamed functions, views of shared memory, SiLU, chaining."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma

# Triton 3.6 knows these by other names.
RENAMED = gl.constexpr(hasattr(gl.shared_memory_descriptor, "reinterpret"))
fetch = getattr(tma, "async_load", tma.async_copy_global_to_shared)
send = getattr(tma, "async_store", tma.async_copy_shared_to_global)


@gluon.jit
def tile_of(desc, buffer, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    """The shared memory as a tile that `desc` copies."""
    if RENAMED:
        return buffer.reinterpret(desc.dtype, [ROWS, COLUMNS], desc.layout)
    else:  # noqa: RET505
        return buffer._reinterpret(desc.dtype, [ROWS, COLUMNS], desc.layout)


@gluon.jit
def gate_by_tanh(y, inner):
    """y · (1 + tanh(inner / 2)) / 2: SiLU where inner is y, by one slow instruction instead of two.

    The hardware's tanh is good to 2⁻¹¹, a quarter of what rounding to bf16 loses.
    """
    turn = gl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [0.5 * inner], dtype=gl.float32, is_pure=True, pack=1
    )
    half = 0.5 * y
    return half * turn + half


@gluon.jit
def follow(CHAIN: gl.constexpr):
    """As in `chain`, for kernels in Gluon."""
    if CHAIN:
        gl.inline_asm_elementwise(
            "griddepcontrol.wait; // dummy $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
        )
