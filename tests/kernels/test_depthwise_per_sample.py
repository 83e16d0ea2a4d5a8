import pytest
import torch

from fewer.kernels.depthwise_per_sample import depthwise_per_sample


@pytest.mark.parametrize("size", [(1, 1), (5, 3)])
def test_equals_a_loop_over_samples(size: tuple, draw) -> None:
    x, weight, bias = draw(3, *size, 5), draw(3, 5, 3, 3), draw(5)
    for silu in (False, True):
        out = depthwise_per_sample(x, weight, bias, silu)
        for i in range(3):
            one = torch.nn.functional.conv2d(
                x[i : i + 1].permute(0, 3, 1, 2), weight[i][:, None], bias, padding=1, groups=5
            )
            one = torch.nn.functional.silu(one) if silu else one
            assert torch.allclose(out[i], one[0].permute(1, 2, 0), atol=1e-5)


def test_one_samples_nan_stays_its_own(draw) -> None:
    x, weight = draw(3, 4, 4, 5), draw(3, 5, 3, 3)
    clean = depthwise_per_sample(x, weight)
    weight[1] = torch.nan
    out = depthwise_per_sample(x, weight)
    assert torch.equal(out[[0, 2]], clean[[0, 2]]) and out[1].isnan().all()


def test_gradients_are_those_of_the_reference(draw) -> None:
    x, weight, bias = (t.double().requires_grad_() for t in (draw(2, 3, 4, 3), draw(2, 3, 3, 3), draw(3)))
    got = torch.autograd.grad(depthwise_per_sample(x, weight, bias, True).square().sum(), (x, weight, bias))
    grouped = torch.nn.functional.conv2d(
        x.permute(0, 3, 1, 2).reshape(1, 6, 3, 4), weight.reshape(6, 1, 3, 3), padding=1, groups=6
    ).reshape(2, 3, 3, 4) + bias.view(1, 3, 1, 1)
    loss = torch.nn.functional.silu(grouped).square().sum()
    wanted = torch.autograd.grad(loss, (x, weight, bias))
    for ours, theirs in zip(got, wanted, strict=True):
        assert (ours - theirs).norm() / theirs.norm() < 1e-5


def test_operator_is_registered_properly(draw) -> None:
    arguments = (draw(2, 3, 2, 4), draw(2, 4, 3, 3), draw(4), False)
    torch.library.opcheck(torch.ops.fewer.depthwise_per_sample, arguments)


def test_gradient_operator_is_registered_properly(draw) -> None:
    torch.library.opcheck(
        torch.ops.fewer.depthwise_per_sample_gradients, (draw(2, 3, 2, 4), draw(2, 3, 2, 4))
    )
