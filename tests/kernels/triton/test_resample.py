import pytest
import torch

from fewer.kernels.resample import reference_upsample_add


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("channels", "out_channels"), [(4, 1), (8, 8), (12, 3)])
@pytest.mark.parametrize("shuffled", [False, True])
def test_agrees_with_the_reference(
    dtype: torch.dtype, channels: int, out_channels: int, shuffled: bool, draw
) -> None:
    from fewer.kernels.triton.resample import launch_upsample_add

    x = draw(2, 3, 5, channels, dtype=dtype)
    main = (
        draw(2, 3, 5, 4 * out_channels, dtype=dtype)
        if shuffled
        else draw(2, 6, 10, out_channels, dtype=dtype)
    )
    out, wanted = launch_upsample_add(x, main, shuffled), reference_upsample_add(x, main, shuffled)
    # The interpreter cuts to bf16 where hardware rounds: at most one unit in the last place.
    assert torch.allclose(out.float(), wanted.float(), rtol=0 if dtype == torch.float32 else 2**-7, atol=0)
