import pytest
import torch
import triton
import triton.language as tl

from fewer.kernels.triton.linear_state import add_states, read_state, sum_tokens


@triton.jit
def _both_kernel(
    query, key, value, states, output, tokens, half, eps,
    HEAD: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """One head: two halves of the tokens are summed apart, added up and read by the first queries."""
    columns = tl.arange(0, DIM)
    known = columns < HEAD
    inside = known[:, None] & known[None, :]
    for part in range(2):
        base = states + part * (HEAD + 1) * HEAD
        end = tl.minimum((part + 1) * half, tokens)
        total, ones = sum_tokens(
            key + columns[None, :], value + columns[None, :], part * half, end, tokens, HEAD,
            HEAD, known, DIM, BLOCK, WIDE, EXACT,
        )  # fmt: skip
        tl.store(base + columns[:, None] * HEAD + columns[None, :], total, mask=inside)
        tl.store(base + HEAD * HEAD + columns, ones, mask=known)
    rows = tl.arange(0, ROWS)[:, None]
    asked = (rows < tokens) & known[None, :]
    q = tl.load(query + rows * HEAD + columns[None, :], mask=asked, other=0.0)
    matrix, ones = add_states(states, 2, (HEAD + 1) * HEAD, columns, known, HEAD, DIM, EXACT)
    result = read_state(q, matrix, ones, eps, False, False)
    tl.store(output + rows * HEAD + columns[None, :], result, mask=asked)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(("tokens", "dim"), [(40, 32), (37, 12), (1, 5)])
def test_parts_summed_apart_are_read_as_their_sum(tokens: int, dim: int, exact: bool, draw) -> None:
    query, key, value = (draw(tokens, dim) for _ in range(3))
    states = draw(2, dim + 1, dim).to(torch.float64 if exact else torch.float32)
    output, half = torch.empty_like(query), 32
    _both_kernel[(1,)](
        query, key, value, states, output, tokens, half, 1e-15,
        HEAD=dim, DIM=max(16, triton.next_power_of_2(dim)), ROWS=64, BLOCK=16, WIDE=not key.is_cuda,
        EXACT=exact,
    )  # fmt: skip
    weights = query.double().relu() @ key.double().relu().mT
    expected = weights @ value.double() / (weights.sum(1, keepdim=True) + 1e-15)
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-4)
    for part, rows in ((0, slice(0, half)), (1, slice(half, None))):
        state = value[rows].double().mT @ key[rows].double().relu()
        torch.testing.assert_close(states[part, :dim].double(), state, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            states[part, dim].double(), key[rows].double().relu().sum(0), atol=1e-5, rtol=1e-4
        )
