"""Does the search find a planted length? Five seeds, lags 2 and 5, with and without penalty. runs on: cpu

Also NDCG@10 of the retrained model and of a length that is too short. Goes on where it was stopped.
"""

import argparse
from dataclasses import replace

import torch
from recommend_record import record, recorded

from fewer.core.device import isolated_randomness
from fewer.recommend.automlp import AutoMLPNetwork, AutoMLPShape
from fewer.recommend.data.planted import planted_lag
from fewer.recommend.data.prefixes import Prefixes
from fewer.recommend.data.splits import Split, leave_last_out
from fewer.recommend.evaluate import evaluate
from fewer.recommend.search import SearchPlan, search_length
from fewer.recommend.training.encoders import NetworkScorer
from fewer.recommend.training.loop import TrainingPlan, train_network

SHAPE = AutoMLPShape(
    items=200, length=12, candidates=(1, 2, 3, 5, 8, 12), dim=64, short_layers=1, long_branch=False,
    dropout=0.0, hidden_channel=64, hidden_sequence=32,
)  # fmt: skip
PLAN = SearchPlan(epochs=12, warmup=2, patience=4, batch_size=512, learning_rate=3e-3, architecture_rate=2e-2)


def test_ndcg(split: Split, length: int, seed: int) -> float:
    """Retrained from scratch with one fixed length."""
    with isolated_randomness(seed):
        network = AutoMLPNetwork(replace(SHAPE, candidates=(length,)))
    plan = TrainingPlan(epochs=12, patience=3, batch_size=512, learning_rate=3e-3, seed=seed)
    train_network(network, split, plan, length=12)
    return evaluate(NetworkScorer(network, 200), Prefixes(split, 12), split.test, (10,))["ndcg_at_10"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs: dict[str, dict] = recorded("recommend_planted").get("runs", {})
    for seed in range(arguments.seeds):
        for lag in (2, 5):
            split = leave_last_out(planted_lag(lag, seed=seed))
            for penalty in (0.1, 0.0):
                name = f"lag {lag}, penalty {penalty}, seed {seed}"
                if name in runs:
                    continue
                found = search_length(SHAPE, split, replace(PLAN, penalty=penalty, seed=seed))
                run = {
                    "length": found.length,
                    "probabilities": found.probabilities,
                    "cpu_seconds": found.cpu_seconds,
                }
                if penalty and seed == 0:
                    run["ndcg_at_10_retrained"] = test_ndcg(split, found.length, seed)
                    run["ndcg_at_10_too_short"] = test_ndcg(split, max(n for n in (1, 2, 3) if n < lag), seed)
                runs[name] = run
                record("recommend_planted", {"summary": summary(runs), "runs": runs})


def summary(runs: dict[str, dict]) -> dict[str, str]:
    """penalty 0: at least the lag; penalty 0.1: exactly the lag (both are candidates)."""
    result = {}
    for lag in (2, 5):
        plain = [r["length"] >= lag for n, r in runs.items() if n.startswith(f"lag {lag}, penalty 0.0")]
        priced = [r["length"] == lag for n, r in runs.items() if n.startswith(f"lag {lag}, penalty 0.1")]
        result[f"lag {lag}"] = (
            f"penalty 0: {sum(plain)}/{len(plain)} at least; 0.1: {sum(priced)}/{len(priced)} exact"
        )
    return result


if __name__ == "__main__":
    main()
