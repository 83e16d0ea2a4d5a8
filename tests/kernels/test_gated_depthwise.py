import pytest
import torch

from fewer.kernels.depthwise import depthwise_gated
from fewer.kernels.gated_depthwise import gated_depthwise, reference_backward


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 5, 3, 8), (1, 4, 9, 6)])
@pytest.mark.parametrize("pre_silu", [False, True])
def test_equals_the_form_that_draws(shape: tuple[int, ...], pre_silu: bool, draw) -> None:
    features, weight, bias = draw(*shape), draw(shape[3], 1, 3, 3), draw(shape[3])
    found = gated_depthwise(features, weight, bias, pre_silu)
    assert torch.allclose(found, depthwise_gated(features, weight[:, 0], bias, pre_silu), atol=1e-5)


@pytest.mark.parametrize("pre_silu", [False, True])
def test_gradients_are_those_of_finite_differences(pre_silu: bool, draw) -> None:
    inputs = [draw(*shape).double().requires_grad_() for shape in ((2, 3, 4, 4), (4, 1, 3, 3), (4,))]
    assert torch.autograd.gradcheck(lambda *parts: gated_depthwise(*parts, pre_silu), inputs)


def test_operators_are_registered_properly(draw) -> None:
    inputs = draw(1, 3, 2, 4), draw(4, 1, 3, 3), draw(4)
    torch.library.opcheck(torch.ops.fewer.gated_depthwise, (*inputs, True))
    found = reference_backward(draw(1, 3, 2, 2), *inputs)
    assert [part.shape for part in found] == [part.shape for part in inputs]
