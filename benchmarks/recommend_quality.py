"""NDCG@10 of AutoMLP beside SASRec, GRU4Rec, Markov and popularity, one protocol and one loop. runs on: cpu

Leave-last-out, full ranking, same length, dim, optimizer and processor-time cap; early stopping on validation
NDCG@10. Every finished epoch is a checkpoint, so a stopped run goes on. ml-100k: your copy (--path).
"""

import argparse
from pathlib import Path

import torch
from recommend_record import interactions, record, recorded

from fewer.core.device import isolated_randomness
from fewer.recommend.baselines.counting import LastItems, Markov, Popularity
from fewer.recommend.data.prefixes import Prefixes
from fewer.recommend.data.splits import leave_last_out
from fewer.recommend.evaluate import evaluate
from fewer.recommend.methods import Sizes, build_network, own_loss
from fewer.recommend.training.encoders import NetworkScorer
from fewer.recommend.training.loop import TrainingPlan, train_network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="games-core", choices=("games-core", "games", "ml-100k"))
    parser.add_argument("--path", type=Path)
    parser.add_argument("--methods", nargs="+", default=["automlp", "sasrec", "gru4rec"])
    parser.add_argument("--cpu-seconds", type=float, default=240)
    parser.add_argument("--short", type=int, default=5, help="AutoMLP's short-term length")
    parser.add_argument("--automlp-layers", type=int, default=1)
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpoints", type=Path, default=Path("outputs/recommend_quality"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = interactions(given.data, given.path)
    split = leave_last_out(data)
    prefixes = Prefixes(split, 50)
    name = f"recommend_quality_{given.data}"
    table: dict[str, dict] = recorded(name).get("models", {})
    for label, counting in (("popularity", Popularity), ("last-item", LastItems), ("markov", Markov)):
        table[label] = {"test": evaluate(counting.fit(split), prefixes, split.test, (10,))}
    for method in given.methods:
        layers = given.automlp_layers if method == "automlp" else 2
        sizes = Sizes(length=50, dim=64, layers=layers, dropout=given.dropout, candidates=(given.short,))
        plan = TrainingPlan(
            learning_rate=given.learning_rate,
            cpu_seconds=given.cpu_seconds,
            seed=given.seed,
            loss=own_loss(method, "cross-entropy"),
        )
        with isolated_randomness(given.seed):
            network = build_network(method, sizes, data.item_count).to(given.device)
        label = f"{method} seed {given.seed}"
        folder = given.checkpoints / given.data / label.replace(" ", "-")
        result = train_network(network, split, plan, length=50, folder=folder, resume=True)
        table[label] = {
            "test": evaluate(NetworkScorer(network, data.item_count), prefixes, split.test, (10,)),
            "validation_ndcg_at_10": result.best_ndcg,
            "best_epoch": result.best_epoch,
            "epochs": len(result.path),
            "stopped": result.stopped,
            "cpu_seconds": sum(entry["train_cpu_seconds"] for entry in result.path),
            "path": [entry["ndcg_at_10"] for entry in result.path],
            "layers": layers,
        }
        settings = {k: str(v) for k, v in vars(given).items() if k not in ("path", "checkpoints", "methods")}
        record(name, {"models": table, "settings": settings})


if __name__ == "__main__":
    main()
