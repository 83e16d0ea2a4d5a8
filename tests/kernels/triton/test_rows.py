import pytest
import triton

from fewer.kernels.triton.rows import pieces


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
