from typing import get_args

import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.recommend.data.splits import Split
from fewer.recommend.methods import (
    MethodName,
    Sizes,
    automlp_shape,
    build_network,
    fitting_candidates,
    own_loss,
)
from fewer.recommend.training.loop import TrainingPlan, train_network

SIZES = Sizes(length=6, dim=8, layers=1, dropout=0.0, candidates=(2,), hidden_channel=8, hidden_sequence=8)


@pytest.mark.parametrize("method", get_args(MethodName))
def test_every_method_learns_the_planted_rule_better_than_chance(split: Split, method: MethodName) -> None:
    torch.manual_seed(0)
    network = build_network(method, SIZES, split.interactions.item_count)
    plan = TrainingPlan(
        epochs=45,
        patience=45,
        batch_size=64,
        sequence_batch_size=16,
        learning_rate=5e-3,
        negatives=8,
        loss=own_loss(method, "cross-entropy"),
    )
    result = train_network(network, split, plan, length=6)
    assert result.path[-1]["loss"] < result.path[0]["loss"]
    assert result.best_ndcg > 0.4  # chance: 0.227


def test_sizes_reach_the_network_and_names_are_checked() -> None:
    assert automlp_shape(SIZES, 9).short_layers == 1 and automlp_shape(SIZES, 9).items == 9
    assert own_loss("sasrec-binary", "cross-entropy") == "binary" and own_loss("gru4rec", "bpr") == "bpr"
    with pytest.raises(ConfigError, match="allowed: automlp"):
        build_network("magic", SIZES, 9)  # pyright: ignore


def test_lengths_beyond_the_history_are_dropped_with_a_sentence() -> None:
    sizes, notes = fitting_candidates(Sizes(length=6, candidates=(9, 2, 2, 5)))
    assert sizes.candidates == (2, 5) and "[9] exceed" in notes[0]
    for wrong in ((0, 2), (7,)):
        with pytest.raises(ConfigError):
            fitting_candidates(Sizes(length=6, candidates=wrong))
