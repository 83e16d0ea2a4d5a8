import pytest
import torch

from fewer.kernels.triton.hopper import has_hopper
from tests.kernels.triton.test_hopper_product import compiled

GPU = torch.cuda.is_available() and has_hopper(torch.device("cuda"))


def test_both_ends_of_a_tile_compile_into_one_kernel() -> None:
    assert compiled()["attended"] > 10_000


@pytest.mark.skipif(not GPU, reason="needs a Hopper GPU")
@pytest.mark.parametrize("heads", [2, 6, 36])
def test_states_are_those_of_the_rounded_keys_and_values(heads: int, draw) -> None:
    from fewer.kernels.attended import order_of_heads
    from fewer.kernels.linear_attention import reference_state
    from fewer.kernels.triton.hopper_product import States, launch_product

    codes = torch.randint(-127, 128, (512, 64), dtype=torch.int8).cuda()
    weight = torch.randint(-126, 127, (96 * heads, 64), dtype=torch.int8).cuda()
    scales = draw(512).abs() / 500, draw(96 * heads).abs() / 500
    joint = launch_product(codes, weight, scales, None, None, None, 0)
    order = order_of_heads(heads).cuda()
    sums = torch.full((2, 2, heads, 33, 32), torch.nan, device="cuda")
    ordered = weight[order], (scales[0], scales[1][order])
    query = launch_product(codes, *ordered, None, None, None, 0, states=States(sums, 256))
    wanted, key, value = joint.view(2, 256, 3, heads, 32).unbind(2)
    assert torch.equal(query.view(2, 256, heads, 32), wanted)
    for part in range(2):
        rows = slice(128 * part, 128 * part + 128)
        expected = reference_state(key[:, rows], value[:, rows])
        assert (sums[part] - expected).norm() < 1e-5 * expected.norm()
