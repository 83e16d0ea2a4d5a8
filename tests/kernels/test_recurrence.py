import pytest
import torch
from torch import nn

from fewer.kernels.recurrence import recurrent_walk


def one_by_one(gru: nn.GRU, inputs: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Every history by itself through torch's unit."""
    rows = []
    for row, length in zip(inputs, lengths, strict=True):
        padding = row.new_zeros(len(row) - length, gru.hidden_size)
        rows.append(torch.cat([padding, gru(row[-length:][None])[0][0]]) if length else padding)
    return torch.stack(rows)


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("lengths", [[4], [3, 5, 1, 0, 5, 2], [2] * 16 + [1]])
def test_states_and_gradients_are_those_of_torch(
    lengths: list[int], last_only: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    gru, counts = nn.GRU(7, 16, batch_first=True).to(device), torch.tensor(lengths, device=device)
    values = torch.randn(len(lengths), 5, 7, device=device)
    weights = torch.randn(len(lengths), 1 if last_only else 5, 16, device=device)
    parameters = (gru.weight_ih_l0, gru.weight_hh_l0, gru.bias_ih_l0, gru.bias_hh_l0)
    results = []
    for ours in (False, True):
        inputs = values.clone().requires_grad_()
        if ours:
            states = recurrent_walk(inputs, counts, parameters, last_only)
        else:
            states = one_by_one(gru, inputs, lengths)[:, -weights.shape[1] :]
        gru.zero_grad()
        (states * weights).sum().backward()
        results.append([states.detach(), inputs.grad, *(p.grad.clone() for p in gru.parameters())])
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_no_history_at_all(device: torch.device) -> None:
    gru = nn.GRU(3, 16).to(device)
    parameters = (gru.weight_ih_l0, gru.weight_hh_l0, gru.bias_ih_l0, gru.bias_hh_l0)
    inputs = torch.zeros(0, 4, 3, device=device)
    lengths = torch.zeros(0, dtype=torch.long, device=device)
    assert recurrent_walk(inputs, lengths, parameters).shape == (0, 4, 16)
