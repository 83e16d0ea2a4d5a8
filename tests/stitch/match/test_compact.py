import pytest
import torch

from fewer.stitch.match.compact import LEVELS, is_compact, pack, straight_through, unpack


@pytest.mark.parametrize("shape", [(64, 64), (123, 37, 1, 1), (96, 5, 3, 3)])
def test_what_is_read_is_what_was_rounded(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if not is_compact(weight):
        weight = weight.repeat(2, *[1] * (weight.dim() - 1))
    read = unpack(pack({"w": weight}), {"w": weight.shape})["w"]
    assert torch.equal(read, straight_through(weight))
    assert len(read.flatten(1)[0].unique()) <= 5
    # a normal weight keeps 92 % of its energy: the best that five even levels can do
    assert float((read - weight).square().mean() / weight.square().mean()) < 0.1


def test_a_weight_takes_two_and_a_half_bits() -> None:
    weight = torch.randn(192, 192, generator=torch.Generator().manual_seed(0))
    bits = 8 * sum(value.nbytes for value in pack({"w": weight}).values()) / weight.numel()
    assert bits < 2.5


def test_small_tensors_and_counters_stay() -> None:
    tensors = {"norm": torch.rand(96), "count": torch.tensor(7), "first": torch.rand(32, 1, 7, 7)}
    read = unpack(pack(tensors), {name: value.shape for name, value in tensors.items()})
    assert int(read["count"]) == 7
    assert torch.allclose(read["norm"], tensors["norm"], atol=1e-3)
    assert torch.allclose(read["first"], tensors["first"], atol=1e-3)


def test_the_gradient_passes_the_rounding_unchanged() -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (straight_through(weight) * 3).sum().backward()
    assert weight.grad is not None
    assert (weight.grad == 3).all()


def test_rows_of_nothing_stay_nothing() -> None:
    weight = torch.zeros(64, 64)
    assert (unpack(pack({"w": weight}), {"w": weight.shape})["w"] == 0).all()


def test_words_of_another_shape_keep_their_packed_name() -> None:
    packed = pack({"w": torch.ones(64, 64)})
    assert set(unpack(packed, {"w": torch.Size((64, 65))})) == {"w" + LEVELS}
    packed["w" + LEVELS] = packed["w" + LEVELS].float()
    assert set(unpack(packed, {"w": torch.Size((64, 64))})) == {"w" + LEVELS}
