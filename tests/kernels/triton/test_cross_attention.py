import pytest
import torch

from fewer.kernels.cross_attention import reference_cross_attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "length", "head_dim"), [(1, 1, 8), (5, 37, 72), (33, 64, 112), (17, 70, 32)]
)
@pytest.mark.parametrize("masked", [False, True])
def test_agrees_with_the_reference(
    dtype: torch.dtype, tokens: int, length: int, head_dim: int, masked: bool, draw
) -> None:
    from fewer.kernels.triton.cross_attention import launch_cross_attention

    query = draw(2, tokens, 3, head_dim, dtype=dtype)
    keys, values = (draw(2, 3, length, head_dim, dtype=dtype) for _ in range(2))
    visible = None
    if masked:
        visible = torch.arange(length, device=query.device)[None] < torch.tensor(
            [[length], [1]], device=query.device
        )
    out = launch_cross_attention(query, keys, values, visible, tile=(16, 32))
    wanted = reference_cross_attention(query.float(), keys.float(), values.float(), visible)
    assert out.shape == query.shape and out.dtype == dtype
    assert (out.float() - wanted).norm() < (1e-5 if dtype == torch.float32 else 1e-2) * wanted.norm()


def test_strided_queries_and_keys(draw) -> None:
    from fewer.kernels.triton.cross_attention import launch_cross_attention

    query, keys = draw(2, 9, 2, 3, 16)[:, :, 1], draw(2, 21, 3, 16).transpose(1, 2)
    out, wanted = (
        launch_cross_attention(query, keys, keys, None),
        reference_cross_attention(query, keys, keys, None),
    )
    assert (out - wanted).norm() < 1e-5 * wanted.norm()
