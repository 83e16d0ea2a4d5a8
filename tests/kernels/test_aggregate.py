import pytest
import torch

from fewer.kernels.aggregate import aggregate


def test_a_group_reads_only_its_own_channels_and_its_own_neighbourhood(draw) -> None:
    features, depthwise, pointwise = draw(1, 9, 9, 8), draw(8, 5, 5), draw(8, 4)
    before = aggregate(features, depthwise, pointwise)
    features[:, 4, 4, 1] += 1
    changed = (aggregate(features, depthwise, pointwise) - before).abs() > 1e-6
    assert not changed[..., 4:].any()
    lines = changed[0].any(2).any(1).nonzero().flatten()
    assert (int(lines.min()), int(lines.max())) == (2, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operator_is_registered_properly(dtype: torch.dtype, draw) -> None:
    tensors = (draw(1, 3, 4, 8, dtype=dtype), draw(8, 3, 3, dtype=dtype), draw(8, 4, dtype=dtype))
    torch.library.opcheck(torch.ops.fewer.aggregate, tensors)
