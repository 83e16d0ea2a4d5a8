import pytest
import torch
import triton
import triton.language as tl

from fewer.kernels.triton.rows import as_code, pieces


@triton.jit
def _codes(x, y, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    tl.store(y + place, as_code(tl.load(x + place)))


def test_codes_are_rounded_half_to_even_and_end_at_127(device: torch.device) -> None:
    x = torch.cat([torch.arange(-1020, 1020) / 8, torch.tensor([-1e9, -0.0, 0.4999, 1e9])]).to(device)
    x = torch.nn.functional.pad(x, (0, 2048 - len(x)))
    y = torch.full((2048,), 99, dtype=torch.int8, device=device)
    _codes[(1,)](x, y, SIZE=2048)
    assert torch.equal(y.float(), x.round().clamp(-127, 127))


@pytest.mark.parametrize("dim", [1, 5, 16, 123, 1000, 1152, 2048, 2240, 3072, 4096, 5000])
def test_two_pieces_hold_a_row_and_little_else(dim: int) -> None:
    found = pieces(dim)
    both = found["FIRST"] + found["SECOND"]
    assert dim <= both <= max(32, triton.next_power_of_2(dim))
    assert all(found[name] & (found[name] - 1) == 0 for name in ("FIRST", "SECOND"))


def test_widths_between_powers_of_two_waste_less_than_a_tenth() -> None:
    for dim in (1152, 2240, 3072):
        found = pieces(dim)
        assert found["FIRST"] + found["SECOND"] < 1.1 * dim
