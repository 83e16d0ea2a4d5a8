"""Linear attention over several GPUs without a collective: states are written where their readers are.

The kernel that sums a band's tokens writes its result into the memory of every peer and then counts it there;
the kernel that reads the sum waits for the count, and adds up what lies in its own memory in the order of the
ranks. Both are the kernels of `linear_attention.py` otherwise. Counts only grow: how far a count must come is
kept by its reader, who moves the goal before the kernel that waits for it is launched.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fewer.kernels.triton.linear_attention import _lanes, _last_contiguous, _partial_states
from fewer.kernels.triton.linear_state import add_states, read_state, sum_tokens


@triton.jit
def wait_for(count, goal):
    """Until `count`, which peers raise, has come to `goal`. What they wrote before can be read then."""
    reached = tl.atomic_add(count, 0, sem="acquire", scope="sys")
    while reached - goal < 0:
        reached = tl.atomic_add(count, 0, sem="acquire", scope="sys")


@triton.jit
def _tell(peers, rank, size, counts, lane):
    """All that this program has written is there: counted at every peer."""
    tl.debug_barrier()
    for peer in range(size):
        if peer != rank:
            at = tl.load(peers + peer).to(tl.pointer_type(tl.int32)) + counts + lane
            tl.atomic_add(at, 1, sem="release", scope="sys")


@triton.jit(do_not_specialize=["rank"])
def _shared_state_kernel(
    key, value, peers, goals, tokens, heads, each, rank, size, places, counts,
    key_b, key_n, key_h, value_b, value_n, value_h,
    HEAD: tl.constexpr, DIM: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    part, batch = tl.program_id(0), tl.program_id(2)
    first = tl.program_id(1) * HEADS
    parts, batches = tl.num_programs(0), tl.num_programs(2)
    lane = tl.arange(0, HEADS * DIM)
    head, column = first + lane // DIM, lane % DIM
    known = (column < HEAD) & (head < heads)
    key += batch * key_b + (head * key_h + column)[None, :]
    value += batch * value_b + (head * value_h + column)[None, :]
    end = tl.minimum((part + 1) * each, tokens)
    total, ones = sum_tokens(
        key, value, part * each, end, tokens, key_n, value_n, known, HEADS * DIM, BLOCK, WIDE, False
    )
    offset = (((rank * parts + part) * batches + batch) * heads + head) * (HEAD + 1) * HEAD
    inside = (head[:, None] == head[None, :]) & known[:, None] & known[None, :]
    for peer in range(size):
        memory = tl.multiple_of(tl.load(peers + peer).to(tl.pointer_type(tl.float32)), 16)
        base = memory + places + offset
        tl.store(base[:, None] + column[:, None] * HEAD + column[None, :], total, mask=inside)
        tl.store(base + HEAD * HEAD + column, ones, mask=known)
    slot = batch * tl.num_programs(1) + tl.program_id(1)
    _tell(peers, rank, size, counts, slot)
    if part == 0:
        tl.store(goals + slot, tl.load(goals + slot) + (size - 1) * parts)


@triton.jit(do_not_specialize=["rank"])
def _shared_sum_kernel(
    partial, peers, goals, parts, stride, numbers, groups, each, rank, size, places, counts,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds up partial states of a band and shares the sum; a program takes what is counted together."""
    group, batch = tl.program_id(0), tl.program_id(1)
    inner = tl.arange(0, BLOCK)
    alive = (inner < each) & (group * each + inner < numbers)
    where = batch * numbers + group * each + inner
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for part in range(parts):
        total += tl.load(partial + part * stride + where, mask=alive, other=0.0)
    for peer in range(size):
        base = tl.multiple_of(tl.load(peers + peer).to(tl.pointer_type(tl.float32)), 16) + places
        tl.store(base + rank * stride + where, total, mask=alive)
    slot = batch * groups + group
    _tell(peers, rank, size, counts, slot)
    tl.store(goals + slot, tl.load(goals + slot) + (size - 1))


@triton.jit
def _waiting_apply_kernel(
    query, state, counts, goals, output, tokens, heads, eps,
    query_b, query_n, query_h, output_b, output_n, output_h, parts, part_stride,
    HEAD: tl.constexpr, DIM: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows = block * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, DIM)
    known = columns < HEAD
    inside = (rows < tokens)[:, None] & known[None, :]
    rows = rows.to(tl.int64)[:, None]
    q = tl.load(query + batch * query_b + head * query_h + rows * query_n + columns, mask=inside, other=0.0)
    slot = batch * tl.cdiv(heads, HEADS) + head // HEADS
    wait_for(counts + slot, tl.load(goals + slot))
    base = state + (batch * heads + head) * (HEAD + 1) * HEAD
    # In the order of the ranks, so that all of them hold the same bits.
    matrix, ones = add_states(base, parts, part_stride, columns, known, HEAD, DIM, False)
    result = read_state(q, matrix, ones, eps, HALF, SPLIT)
    where = output + batch * output_b + head * output_h + rows * output_n + columns
    tl.store(where, result.to(output.dtype.element_ty), mask=inside)


# A band of so many tokens is summed by few enough programs that readers can add up what each has found.
MOST_TOKENS_UNSUMMED = 1024


def parts_of(longest: int) -> int:
    """Partial states that each rank shares; `longest` are the tokens of the largest band."""
    return (
        1 if longest > MOST_TOKENS_UNSUMMED else max(1, triton.cdiv(longest, 256 if longest <= 512 else 512))
    )


def launch_shared_state(
    key: Tensor,
    value: Tensor,
    peers: Tensor,
    goals: Tensor,
    rank: int,
    places: int,
    counts: int,
    longest: int,
) -> None:
    """Key and value (batch, tokens, heads, dim) of the own band -> the state at every peer.

    `peers` are the addresses of all ranks' memories, own included; `places` is where the states lie in each
    (in fp32 numbers), `counts` where they are counted (in int32 numbers), `goals` this rank's own.
    """
    key, value = _last_contiguous(key), _last_contiguous(value)
    batch, tokens, heads, dim = key.shape
    lanes, together = _lanes(dim, heads)
    size, groups = peers.numel(), triton.cdiv(heads, together)
    if longest > MOST_TOKENS_UNSUMMED:
        partial = _partial_states(key, value, max(256, triton.cdiv(tokens, 8 * 64) * 64), 64)
        each = together * (dim + 1) * dim
        _shared_sum_kernel[(groups, batch)](
            partial, peers, goals, partial.shape[0], partial.stride(0), heads * (dim + 1) * dim, groups, each,
            rank, size, places, counts, BLOCK=triton.next_power_of_2(each),
        )  # fmt: skip
        return
    parts = parts_of(longest)
    _shared_state_kernel[(parts, groups, batch)](
        key, value, peers, goals, tokens, heads, triton.cdiv(longest, 64 * parts) * 64, rank, size, places,
        counts,
        *key.stride()[:3], *value.stride()[:3],
        HEAD=dim, DIM=lanes, HEADS=together, BLOCK=64, WIDE=not key.is_cuda,
    )  # fmt: skip


def launch_waiting_apply(
    query: Tensor, states: Tensor, counts: Tensor, goals: Tensor, eps: float, block: int = 128
) -> Tensor:
    """Query (batch, tokens, heads, dim) of the own band and all ranks' states, once they have come.

    `states` (ranks · parts, batch, heads, dim + 1, dim) and `counts` lie in the own memory.
    """
    query = _last_contiguous(query)
    batch, tokens, heads, dim = query.shape
    output = torch.empty((batch, tokens, heads, dim), dtype=query.dtype, device=query.device)
    lanes, together = _lanes(dim, heads)
    _waiting_apply_kernel[(triton.cdiv(tokens, block), heads, batch)](
        query, states, counts, goals, output, tokens, heads, eps,
        *query.stride()[:3], *output.stride()[:3], states.shape[0], states.stride(0),
        HEAD=dim, DIM=lanes, HEADS=together, BLOCK=block, HALF=query.dtype == torch.float16,
        SPLIT=query.is_cuda and query.dtype == torch.bfloat16,
    )  # fmt: skip
    return output
