import pytest
import torch
from torch import nn

from fewer.recommend.baselines import recurrence
from fewer.recommend.baselines.recurrence import recurrent_states


def reference(gru: nn.GRU, inputs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Every history by itself through torch's unit."""
    rows = []
    for row, length in zip(inputs, lengths.tolist(), strict=True):
        padding = torch.zeros(inputs.shape[1] - length, gru.hidden_size)
        rows.append(torch.cat([padding, gru(row[-length:][None])[0][0]]) if length else padding)
    return torch.stack(rows)


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("lengths", [[3], [5, 1, 3, 5, 2], [2, 0, 4]])
def test_states_and_gradients_are_those_of_torch(
    lengths: list[int], last_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recurrence, "CHUNK_ROWS", 2)  # several chunks of different lengths
    torch.manual_seed(0)
    gru, counts = nn.GRU(3, 4, batch_first=True), torch.tensor(lengths)
    values = torch.randn(len(lengths), 5, 3)
    weights = torch.randn(len(lengths), 1 if last_only else 5, 4)
    results = []
    for ours in (False, True):
        inputs = values.clone().requires_grad_()
        if ours:
            states = recurrent_states(gru, inputs, counts, last_only)
        else:
            states = reference(gru, inputs, counts)
            states = states[:, -1:] if last_only else states
        gru.zero_grad()
        (states * weights).sum().backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in gru.parameters()]
        results.append([states.detach(), inputs.grad, *gradients])
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, torch.zeros_like(got) if wanted is None else wanted)
