import pytest
import torch

from fewer.kernels.triton.recurrence import launch_recurrence, launch_recurrence_backward


def test_what_lies_before_a_history_is_zero_afterwards(draw) -> None:
    gates, weight, bias = draw(3, 4, 48), draw(48, 16, scale=0.1), draw(48)
    lengths = torch.tensor([2, 0, 4], dtype=torch.int32, device=gates.device)
    inner, states = launch_recurrence(gates, lengths, weight, bias)
    begun = torch.arange(4, device=gates.device)[None] >= 4 - lengths[:, None]
    assert (states[~begun] == 0).all() and (states[begun] != 0).all()
    launch_recurrence_backward(gates, inner, states, draw(3, 4, 16), lengths, weight)
    assert (gates[~begun] == 0).all() and (inner[~begun] == 0).all()
    assert gates[begun].abs().sum() > 0


@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_half_precision_is_as_exact_as_tf32(size: float, draw) -> None:
    lengths, results = torch.tensor([5, 1, 0, 4] + [3] * 13, dtype=torch.int32), []
    weight, bias = draw(96, 32, scale=0.2), draw(96)
    given, asked = draw(17, 5, 96), draw(17, 5, 32, scale=size)
    lengths = lengths.to(given.device)
    for half in (False, True):
        gates = given.clone()
        inner, states = launch_recurrence(gates, lengths, weight, bias, half)
        walked = gates.clone(), inner.clone(), states
        launch_recurrence_backward(gates, inner, states, asked, lengths, weight, half)
        results.append([*walked, gates / size, inner / size])
    begun = torch.arange(5, device=given.device)[None] >= 5 - lengths[:, None]
    for wanted, got in zip(*results, strict=True):
        assert 0 < (got - wanted)[begun].norm() < 1e-3 * wanted[begun].norm()


def test_nobody_has_begun(draw) -> None:
    gates = draw(3, 2, 48)
    lengths = torch.zeros(3, dtype=torch.int32, device=gates.device)
    _, states = launch_recurrence(gates, lengths, draw(48, 16), draw(48))
    assert (states == 0).all()
