from dataclasses import replace

import pytest
import torch

from fewer.core.device import isolated_randomness
from fewer.recommend.automlp import AutoMLPNetwork, AutoMLPShape
from fewer.recommend.data.prefixes import Prefixes
from fewer.recommend.data.splits import Split
from fewer.recommend.evaluate import evaluate
from fewer.recommend.oneshot import EPOCHS_AVERAGED, Evidence
from fewer.recommend.training.encoders import NetworkScorer

SHAPE = AutoMLPShape(items=20, length=6, candidates=(1, 3), dim=8, long_layers=1, short_layers=1)


def evidence(split: Split, gains: torch.Tensor) -> Evidence:
    return Evidence(Prefixes(split, 6), split.validation, 20, recent=[gains])


def test_a_length_s_figure_is_what_evaluation_measures(split: Split) -> None:
    with isolated_randomness(0):
        network = AutoMLPNetwork(SHAPE)
    seen = Evidence(Prefixes(split, 6), split.validation, 20)
    seen.add(network)
    alone = AutoMLPNetwork(replace(SHAPE, candidates=(3,)))
    kept = {k: v for k, v in network.state_dict().items() if not k.startswith(("short.", "architecture"))}
    own = {k.replace("short.1", "short.0"): v for k, v in network.state_dict().items() if "short.1" in k}
    alone.load_state_dict({**kept, **own, "architecture": torch.zeros(1)})
    wanted = evaluate(NetworkScorer(alone, 20), Prefixes(split, 6), split.validation, (10,))["ndcg_at_10"]
    assert seen.figures()[1] == pytest.approx(wanted, rel=1e-5)
    for _ in range(EPOCHS_AVERAGED + 1):
        seen.add(network)
    assert len(seen.recent) == EPOCHS_AVERAGED


def test_rivals_are_the_likely_one_and_all_that_are_not_clearly_worse(split: Split) -> None:
    users = torch.arange(100) % 2
    gains = torch.stack([users * 0.0, users * 0.5, users * 0.5 + 0.001 * (users - 0.5), users * 0.3])
    assert evidence(split, gains).rivals(0, [0.0] * 4) == [2, 1, 0] or evidence(split, gains).rivals(
        0, [0.0] * 4
    ) == [1, 2, 0]
    assert evidence(split, gains).rivals(1, [0.0, 0.01, 0.05, 0.1]) == [1]  # the others pay too much
