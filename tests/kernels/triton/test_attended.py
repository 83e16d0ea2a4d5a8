import pytest
import torch

from fewer.kernels.attended import reference_attended_int8
from fewer.kernels.triton.hopper import has_hopper

GPU = torch.cuda.is_available() and has_hopper(torch.device("cuda"))


@pytest.mark.skipif(not GPU, reason="needs a Hopper GPU")
@pytest.mark.parametrize("tokens", [128, 1024, 1152, 4096])
def test_parts_are_added_up_whether_they_are_few_or_many(tokens: int, draw) -> None:
    """Up to eight by whoever reads them, more by a kernel of their own. It compiles: test_hopper_finish."""
    from fewer.kernels.triton.attended import launch_attended

    codes = torch.randint(-127, 128, (2 * tokens, 64), dtype=torch.int8).cuda()
    weight = torch.randint(-126, 127, (192, 64), dtype=torch.int8).cuda()
    scales = draw(2 * tokens).abs() / 500, draw(192).abs() / 500
    arguments = (codes, scales[0], weight, scales[1], None, 2, 2, 1e-15, torch.bfloat16)
    found, wanted = launch_attended(*arguments).float(), reference_attended_int8(*arguments).float()
    assert (found - wanted).norm() < 1e-2 * wanted.norm()
