import pytest
import torch

from fewer.recommend.baselines import gru4rec
from fewer.recommend.baselines.gru4rec import GRU4Rec, GRUShape


def test_states_are_those_of_a_plain_gru_at_the_items_places() -> None:
    torch.manual_seed(0)
    network = GRU4Rec(GRUShape(items=9, length=6, dim=4, hidden=5)).eval()
    histories = torch.tensor([[0, 0, 1, 2], [3, 4, 5, 6]])
    encoded = network.encode_all(histories)
    states, _ = network.recurrent(network.item_embedding(torch.tensor([[1, 2]])))
    torch.testing.assert_close(encoded[0, 2:], network.output(states)[0])
    torch.testing.assert_close(network(histories), encoded[:, -1])
    torch.testing.assert_close(network(torch.tensor([[0] * 4 + [1, 2]])), encoded[:1, -1])


def test_training_and_evaluation_see_the_same_states() -> None:
    torch.manual_seed(0)
    network = GRU4Rec(GRUShape(items=9, length=6, dim=4, hidden=5, dropout=0.0))
    histories = torch.tensor([[0, 0, 1, 2], [3, 4, 5, 6], [0, 0, 0, 7]])
    trained, trained_last = network.train().encode_all(histories), network(histories)
    network.eval()
    real = histories > 0
    torch.testing.assert_close(trained[real], network.encode_all(histories)[real])
    torch.testing.assert_close(trained_last, network(histories))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_walk_on_a_gpu_gives_cudnn_s_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = GRU4Rec(GRUShape(items=9, length=6, dim=4, hidden=16, dropout=0.0)).cuda().train()
    histories = torch.tensor([[0, 0, 1, 2], [3, 4, 5, 6], [0, 0, 0, 7]], device="cuda")
    gradients = []
    for rows in (1, 10**9):
        monkeypatch.setattr(gru4rec, "WALK_ROWS", rows)
        network.zero_grad()
        (network.encode_all(histories)[histories > 0].square().sum() + network(histories).sum()).backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    for walked, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(walked, wanted, atol=2e-3, rtol=2e-2)
