import torch

from fewer.recommend.baselines.bert4rec import BERT4Rec
from fewer.recommend.baselines.transformer import TransformerShape


def test_hidden_items_are_not_seen_and_the_next_one_is_a_mask_at_the_end() -> None:
    torch.manual_seed(0)
    network = BERT4Rec(TransformerShape(items=9, length=4, dim=8)).eval()
    hidden = torch.tensor([[False, False, True, False]])
    one = network.encode_masked(torch.tensor([[1, 2, 3, 4]]), hidden)
    torch.testing.assert_close(one, network.encode_masked(torch.tensor([[1, 2, 9, 4]]), hidden))
    assert (
        one - network.encode_masked(torch.tensor([[1, 2, 3, 5]]), hidden)
    ).abs().max() > 1e-5  # both sides count
    last = torch.tensor([[False, False, False, True]])
    torch.testing.assert_close(
        network(torch.tensor([[1, 2, 3]])), network.encode_masked(torch.tensor([[1, 2, 3, 7]]), last)
    )
    torch.testing.assert_close(network(torch.tensor([[0, 1, 2, 3]])), network(torch.tensor([[1, 2, 3]])))
