"""Guidance and a solver's step in Triton: every number is read once and written once."""

import triton
import triton.language as tl
from torch import Tensor

from fewer.kernels.triton.chain import chained, follow

BLOCK = 1024


@triton.jit
def _guided_step_kernel(
    state, network, velocity, facts, count, BLOCK: tl.constexpr, GUIDED: tl.constexpr, CHAIN: tl.constexpr
):  # fmt: skip
    follow(CHAIN)
    where = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = where < count
    x = tl.load(state + where, mask=inside, other=0.0)
    guess = tl.load(state + count + where, mask=inside, other=0.0)
    v = tl.load(velocity + where, mask=inside, other=0.0).to(tl.float32)
    if GUIDED:
        positive = tl.load(velocity + count + where, mask=inside, other=0.0).to(tl.float32)
        v = v + tl.load(facts + 4) * (positive - v)
    clean = x - tl.load(facts) * v
    after = tl.load(facts + 1) * x + tl.load(facts + 2) * clean + tl.load(facts + 3) * guess
    tl.store(state + where, after, mask=inside)
    tl.store(state + count + where, clean, mask=inside)
    narrow = after.to(network.dtype.element_ty)
    tl.store(network + where, narrow, mask=inside)
    if GUIDED:
        tl.store(network + count + where, narrow, mask=inside)


def launch_guided_step(state: Tensor, network: Tensor, velocity: Tensor, facts: Tensor) -> None:
    """As `reference_guided_step`; state and facts in fp32."""
    count = state[0].numel()
    if count:
        _guided_step_kernel[(triton.cdiv(count, BLOCK),)](
            state, network, velocity.contiguous(), facts.contiguous(), count,
            BLOCK=BLOCK, GUIDED=velocity.shape[0] > state.shape[1], num_warps=4, **chained(state.device),
        )  # fmt: skip
