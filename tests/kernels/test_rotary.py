import pytest
import torch

from fewer.kernels.rotary import norm_and_rotate, on_gpu


def turn_of(rows: int, half: int, draw) -> tuple[torch.Tensor, torch.Tensor]:
    angles = draw(rows, half)
    return angles.cos(), angles.sin()


@pytest.mark.parametrize(("rows", "heads", "dim"), [(1, 1, 2), (5, 3, 10), (7, 2, 128)])
def test_it_is_torchs_norm_and_a_product_of_complex_numbers(rows: int, heads: int, dim: int, draw) -> None:
    joint, weights = draw(rows, 3 * heads * dim), (draw(dim), draw(dim))
    cos, sin = turn_of(rows, dim // 2, draw)
    expected = joint.clone().view(rows, 3, heads, dim)
    for part, weight in enumerate(weights):
        normed = torch.nn.functional.rms_norm(expected[:, part], (dim,), weight, 1e-6)
        pairs = torch.view_as_complex(normed.unflatten(2, (-1, 2)).contiguous())
        turned = pairs * torch.complex(cos, sin)[:, None]
        expected[:, part] = torch.view_as_real(turned).flatten(2)
    norm_and_rotate(joint, *weights, cos, sin, heads)
    assert torch.allclose(joint, expected.flatten(1), atol=1e-5)


def test_a_turn_keeps_lengths_and_scores_depend_on_distance_alone(draw) -> None:
    dim, places = 8, torch.arange(6.0)
    frequency = 100 ** (-torch.arange(dim // 2) / (dim // 2))
    joint = draw(1, 2 * dim).repeat(6, 1)
    joint[:, dim:] = joint[:, :dim]
    one = torch.ones(dim, device=joint.device)
    angles = (places[:, None] * frequency).to(joint)
    norm_and_rotate(joint, one, one, angles.cos(), angles.sin(), 1)
    query, key = joint.split(dim, dim=1)
    assert torch.allclose(query.square().sum(1), torch.full((6,), float(dim)).to(joint), rtol=1e-4)
    scores = query @ key.T
    assert torch.allclose(scores[1:, 1:], scores[:-1, :-1], atol=1e-4)


def test_only_queries_and_keys_of_a_slice_change(draw) -> None:
    whole = draw(9, 3 * 2 * 4)
    before, (cos, sin) = whole.clone(), turn_of(4, 2, draw)
    norm_and_rotate(whole[3:7], draw(4), draw(4), cos, sin, 2)
    assert torch.equal(whole[:3], before[:3]) and torch.equal(whole[7:], before[7:])
    assert torch.equal(whole[:, 16:], before[:, 16:]) and not torch.equal(whole[3:7, :16], before[3:7, :16])


@pytest.mark.parametrize(("wide", "dim", "half"), [(24, 3, 1), (24, 4, 3), (15, 4, 2)])
def test_shapes_that_do_not_belong_together_are_refused(wide: int, dim: int, half: int, draw) -> None:
    with pytest.raises(ValueError, match="do not hold queries and keys"):
        norm_and_rotate(draw(2, wide), draw(dim), draw(dim), *turn_of(2, half, draw), 2)


def test_operator_is_registered_properly(draw) -> None:
    cos, sin = turn_of(3, 2, draw)
    torch.library.opcheck(torch.ops.fewer.norm_and_rotate, (draw(3, 24), draw(4), draw(4), cos, sin, 2, 1e-6))


def test_on_a_gpu_float64_stays_float64() -> None:
    """The kernel would compute in fp32, and is not asked."""
    joint = 1 + 1e-9 * torch.arange(24, dtype=torch.float64).view(3, 8)
    one, cos, sin = torch.ones(4).double(), torch.full((3, 2), 0.6).double(), torch.full((3, 2), 0.8).double()
    expected = joint.clone()
    norm_and_rotate(expected, one, one, cos, sin, 1)
    on_gpu(joint, one, one, cos, sin, 1, 1e-6)
    assert torch.equal(joint, expected) and len(joint[:, 0].unique()) == 3
