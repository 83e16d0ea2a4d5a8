import pytest
import torch

from fewer.kernels.resample import upsample_add


def test_the_worked_example_of_the_duplicating_shortcut() -> None:
    # Channels a, b, c, d at one pixel, two channels out: 0 = [[a, a], [b, b]], 1 = [[c, c], [d, d]].
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    out = upsample_add(x, torch.zeros(1, 2, 2, 2), shuffled=False)
    assert out[..., 0].tolist() == [[[1, 1], [2, 2]]]
    assert out[..., 1].tolist() == [[[3, 3], [4, 4]]]


@pytest.mark.parametrize("out_channels", [1, 2, 4])
def test_both_forms_of_the_main_branch_agree(out_channels: int, draw) -> None:
    x, main = draw(2, 3, 5, 4), draw(2, 3, 5, 4 * out_channels)
    shuffled = torch.nn.functional.pixel_shuffle(main.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    assert torch.equal(upsample_add(x, main, True), upsample_add(x, shuffled.contiguous(), False))


def test_operator_is_registered_properly(draw) -> None:
    torch.library.opcheck(torch.ops.fewer.upsample_add, (draw(1, 2, 3, 4), draw(1, 2, 3, 8), True))
