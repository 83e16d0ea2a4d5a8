"""Does the search find a planted length? Five seeds, lags 2 and 5, with and without penalty. runs on: cpu

Also NDCG@10 of the retrained model and of a length that is too short. Goes on where it was stopped.
"""
# bench: cpu, 30 min:

import argparse
import itertools
from dataclasses import replace
from pathlib import Path

import torch
from recommend_record import RESULTS, record, recorded

from fewer.core.device import isolated_randomness
from fewer.recommend.automlp import AutoMLPNetwork, AutoMLPShape
from fewer.recommend.data.planted import planted_lag
from fewer.recommend.data.prefixes import Prefixes
from fewer.recommend.data.splits import Split, leave_last_out
from fewer.recommend.evaluate import evaluate
from fewer.recommend.search import SearchPlan, search_length
from fewer.recommend.training.encoders import NetworkScorer
from fewer.recommend.training.loop import TrainingPlan, train_network
from fewer.recommend.trials import settle

SHAPE = AutoMLPShape(
    items=200, length=12, candidates=(1, 2, 3, 5, 8, 12), dim=64, short_layers=1, long_branch=False,
    dropout=0.0, hidden_channel=64, hidden_sequence=32,
)  # fmt: skip
PLAN = SearchPlan(
    epochs=9, warmup=2, patience=3, batch_size=512, validation_batch_size=400, learning_rate=3e-3
)
TRAINING = TrainingPlan(epochs=12, patience=3, batch_size=512, learning_rate=3e-3)


def test_ndcg(split: Split, length: int, seed: int) -> float:
    """Retrained from scratch with one fixed length."""
    with isolated_randomness(seed):
        network = AutoMLPNetwork(replace(SHAPE, candidates=(length,)))
    train_network(network, split, replace(TRAINING, seed=seed), length=12)
    return evaluate(NetworkScorer(network, 200), Prefixes(split, 12), split.test, (10,))["ndcg_at_10"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--lags", type=int, nargs="+", default=[2, 5])
    parser.add_argument("--relaxation", default="expectation", choices=("expectation", "mixture"))
    parser.add_argument("--part", default="", help="results of other lags go to a file of their own")
    parser.add_argument(
        "--limit", type=int, default=1000, help="stop after so many searches; run again to go on"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--join", nargs="+", help="parts (their --part) to put together into one result")
    arguments = parser.parse_args()
    if arguments.join:
        found = [recorded("recommend_planted" + part, arguments.results)["runs"] for part in arguments.join]
        joined = {name: run for part in found for name, run in part.items()}
        record("recommend_planted", {"summary": summary(joined, arguments.lags), "runs": joined})
        return
    torch.set_num_threads(1)
    file, left = "recommend_planted" + arguments.part, arguments.limit
    runs: dict[str, dict] = recorded(file, arguments.results).get("runs", {})
    for penalty, seed, lag in itertools.product((0.1, 0.0), arguments.seeds, arguments.lags):
        name = f"lag {lag}, penalty {penalty}, seed {seed}"
        if name in runs:
            continue
        if not left:
            return
        left -= 1
        split = leave_last_out(planted_lag(lag, seed=seed))
        plan = replace(PLAN, penalty=penalty, seed=seed, relaxation=arguments.relaxation)
        found = search_length(SHAPE, split, plan)
        rivals = [found.candidates[index] for index in found.rivals]
        if (
            penalty
        ):  # without a price all sufficient lengths are rivals, and a trial could only choose among them
            settle(found, SHAPE, split, replace(TRAINING, seed=seed), plan.finalists)
        runs[name] = {
            "length": found.length,
            "probabilities": found.probabilities,
            "figures": found.figures,
            "rivals": rivals,
            "epochs": len(found.path),
            "cpu_seconds": found.cpu_seconds,
        }
        record(file, {"summary": summary(runs, arguments.lags), "runs": runs}, arguments.results)
    for lag in arguments.lags:
        seed = arguments.seeds[0]
        run = runs[f"lag {lag}, penalty 0.1, seed {seed}"]
        split, shorter = leave_last_out(planted_lag(lag, seed=seed)), [n for n in SHAPE.candidates if n < lag]
        if left and "ndcg_at_10_retrained" not in run:
            left -= 1
            run["ndcg_at_10_retrained"] = test_ndcg(split, run["length"], seed)
            run["ndcg_at_10_too_short"] = test_ndcg(split, shorter[-1], seed)
            record(file, {"summary": summary(runs, arguments.lags), "runs": runs}, arguments.results)


def summary(runs: dict[str, dict], lags: list[int]) -> dict[str, str]:
    """penalty 0: the length and all its rivals at least the lag; 0.1: exactly the lag (a candidate)."""
    result = {}
    for lag in lags:
        plain = [
            min(r["length"], *r["rivals"]) >= lag
            for n, r in runs.items()
            if n.startswith(f"lag {lag}, penalty 0.0")
        ]
        priced = [r["length"] == lag for n, r in runs.items() if n.startswith(f"lag {lag}, penalty 0.1")]
        result[f"lag {lag}"] = (
            f"penalty 0: {sum(plain)}/{len(plain)} at least; 0.1: {sum(priced)}/{len(priced)} exact"
        )
    return result


if __name__ == "__main__":
    main()
