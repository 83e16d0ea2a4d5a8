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
