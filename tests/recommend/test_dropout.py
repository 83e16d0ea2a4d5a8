import pytest
import torch

from fewer.recommend.dropout import Dropout


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.9])
def test_mean_is_kept_and_the_rate_is_met(rate: float) -> None:
    torch.manual_seed(0)
    out = Dropout(rate)(torch.ones(123, 457))
    assert abs(float(out.mean()) - 1) < 0.02
    assert abs(float((out == 0).float().mean()) - rate) < 0.01
    assert len(out.unique()) == 2


@pytest.mark.parametrize("shape", [(1,), (5, 3), (0,), (2, 3, 7)])
def test_odd_shapes_gradients_and_evaluation(shape: tuple[int, ...]) -> None:
    layer = Dropout(0.5)
    values = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    out = layer(values)
    out.sum().backward()
    assert out.shape == shape and out.dtype == torch.float64
    assert torch.equal(values.grad == 0, out == 0) and torch.equal(
        values.grad[out != 0], torch.full_like(out[out != 0], 2.0)
    )
    assert layer.eval()(values) is values


def test_the_global_seed_decides() -> None:
    layer, values = Dropout(0.3), torch.ones(99)
    torch.manual_seed(4)
    first = layer(values)
    torch.manual_seed(4)
    assert torch.equal(first, layer(values))
