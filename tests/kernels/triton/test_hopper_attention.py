import pytest
import torch

from fewer.kernels.cross_attention import reference_cross_attention
from fewer.kernels.triton.hopper import has_hopper
from fewer.kernels.triton.hopper_attention import fits_attention, launch_attention
from tests.kernels.triton.test_hopper_product import compiled

GPU = torch.cuda.is_available() and has_hopper(torch.device("cuda"))


def test_it_compiles_with_the_triton_that_is_installed() -> None:
    assert compiled()["attention"] > 10_000 and compiled()["attention of one chunk"] > 10_000


def test_heads_of_whole_copies_and_few_keys() -> None:
    def tensors(wide: int, length: int, dtype: torch.dtype = torch.bfloat16) -> tuple:
        shapes = (1, 5, 2, wide), (1, 2, length, wide), (1, 2, length, wide)
        return tuple(torch.zeros(shape, dtype=dtype) for shape in shapes)

    assert fits_attention(*tensors(72, 300)) and fits_attention(*tensors(128, 320))
    others = [tensors(*sizes) for sizes in ((64, 9), (76, 9), (136, 9), (72, 321))]
    others.append(tensors(72, 9, torch.float16))
    assert not any(fits_attention(*other) for other in others)


@pytest.mark.skipif(not GPU, reason="needs a Hopper GPU")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("queries", [64, 128])
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "wide", "length"),
    [(1, 1, 1, 72, 1), (2, 70, 3, 72, 300), (1, 130, 2, 112, 64), (2, 65, 2, 96, 129), (1, 200, 2, 128, 320)],
)
def test_it_agrees_with_the_reference(
    batch: int, tokens: int, heads: int, wide: int, length: int, queries: int, masked: bool, draw
) -> None:
    query = draw(batch, tokens, 2, heads, wide, dtype=torch.bfloat16)[:, :, 0]  # rows apart
    keys, values = (draw(batch, heads, length, wide, dtype=torch.bfloat16) for _ in range(2))
    visible = torch.rand(batch, length, device=query.device) > 0.3 if masked else None
    if visible is not None:
        visible[:, 0] = True
    found = launch_attention(query, keys, values, visible, queries)
    wanted = reference_cross_attention(query.float(), keys.float(), values.float(), visible)
    assert (found.float() - wanted).norm() < 1e-2 * wanted.norm()
