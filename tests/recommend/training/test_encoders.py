import torch

from fewer.recommend.methods import Sizes, build_network
from fewer.recommend.training.encoders import NetworkScorer, SequenceEncoder, item_table


def test_scores_are_inner_products_without_dropout_and_without_the_mask_token() -> None:
    network = build_network("bert4rec", Sizes(length=4, dim=8, dropout=0.9), items=6)
    assert isinstance(network, SequenceEncoder)
    network.train()
    scorer = NetworkScorer(network, 6)
    histories = torch.tensor([[0, 1, 2], [3, 4, 5]])
    first = scorer.scores(histories)
    assert first.shape == (2, 7) and torch.equal(first, scorer.scores(histories))
    assert network.training and not first.requires_grad
    assert item_table(network, 6).shape == (7, 8)
