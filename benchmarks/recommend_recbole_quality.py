"""What RecBole's SASRec and GRU4Rec learn in a given time, beside ours: ml-100k, one split, one budget.
runs on: cpu or cuda

Each side trains for --budget seconds of wall time (validation after every epoch included; it stops earlier
after ten epochs without a gain), keeps its best epoch by validation NDCG@10 and answers the test targets by
full ranking. RecBole 1.2.1's model classes (--recbole: the package), loss and ranking; its batches come by
plain indexing, which flatters it. Sizes as in recommend_recbole_gpu.py; 2,048 pairs a step for both.
"""
# bench: by hand: needs RecBole's package and its ml-100k file

import argparse
import time
from pathlib import Path

import torch
from recommend_recbole_gpu import BATCH, COUNT, LENGTH, LIST, recbole_model, recbole_steps
from recommend_record import RESULTS, record
from torch import Tensor, nn

from fewer.core.device import isolated_randomness
from fewer.recommend.data.prefixes import Prefixes
from fewer.recommend.data.reading import read_interactions
from fewer.recommend.data.splits import Split, leave_last_out
from fewer.recommend.evaluate import evaluate
from fewer.recommend.methods import Sizes, build_network
from fewer.recommend.training.encoders import NetworkScorer
from fewer.recommend.training.loop import TrainingPlan, train_network

PATIENCE = 10


class RecBoleScorer:
    """RecBole's own full ranking behind our metrics; histories move to the left edge."""

    def __init__(self, model: nn.Module, device: str) -> None:
        self.model, self.device = model, device

    def scores(self, histories: Tensor) -> Tensor:
        width, lengths = histories.shape[1], (histories > 0).sum(1)
        shift = torch.arange(width) + width - lengths[:, None]
        moved = histories.gather(1, shift.clamp(max=width - 1)) * (shift < width)
        padded = nn.functional.pad(moved, (0, LENGTH - width))
        self.model.eval()
        with torch.no_grad():
            batch = {LIST: padded.to(self.device), COUNT: lengths.to(self.device)}
            return self.model.full_sort_predict(batch).clone()  # pyright: ignore


def recbole(model: nn.Module, split: Split, device: str, budget: float, rate: float) -> dict[str, object]:
    """Epochs until the budget or the patience is over; the best epoch's weights answer."""
    steps, scorer = recbole_steps(model, split, device, rate), RecBoleScorer(model, device)
    prefixes, path, best, learned = Prefixes(split, LENGTH), [], {}, 0
    began = time.perf_counter()
    while time.perf_counter() - began < budget:
        model.train()
        pairs = 0
        while pairs < len(split.train) and time.perf_counter() - began < budget:
            pairs += next(steps)
        learned += pairs
        path.append(evaluate(scorer, prefixes, split.validation, (10,))["ndcg_at_10"])
        if path[-1] == max(path):
            best = {name: value.clone() for name, value in model.state_dict().items()}
        if len(path) - 1 - path.index(max(path)) >= PATIENCE:
            break
    spent = time.perf_counter() - began
    model.load_state_dict(best)
    return {
        "epochs": learned / len(split.train),
        "seconds": spent,
        "validation_ndcg_at_10": max(path),
        "test": evaluate(scorer, prefixes, split.test, (10,)),
    }


def ours(method: str, split: Split, device: str, budget: float, rate: float) -> dict[str, object]:
    """Our training loop, all positions of a window at once, as `fewer recommend train` does."""
    items = split.interactions.item_count
    with isolated_randomness(0):
        network = build_network(method, Sizes(length=LENGTH, dim=64, dropout=0.2), items).to(device)
    plan = TrainingPlan(
        sequence_batch_size=BATCH // LENGTH, learning_rate=rate, wall_seconds=budget, patience=PATIENCE
    )
    result = train_network(network, split, plan, length=LENGTH)
    return {
        "epochs": len(result.path),
        "seconds": result.seconds,
        "validation_ndcg_at_10": result.best_ndcg,
        "test": evaluate(NetworkScorer(network, items), Prefixes(split, LENGTH), split.test, (10,)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recbole", type=Path, required=True, help="folder of the recbole package (1.2.1)")
    parser.add_argument("--path", type=Path, required=True, help="your ml-100k interactions")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds of each training")
    parser.add_argument("--rate", type=float, default=1e-3, help="RecBole's default")
    parser.add_argument("--models", nargs="+", default=["GRU4Rec", "SASRec"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    split = leave_last_out(read_interactions(given.path))
    results: dict[str, dict] = {}
    for name in given.models:
        torch.manual_seed(0)
        model = recbole_model(given.recbole, name, split.interactions.item_count, given.device)
        results[name] = {
            "recbole": recbole(model, split, given.device, given.budget, given.rate),
            "ours": ours(name.lower(), split, given.device, given.budget, given.rate),
        }
        card = torch.cuda.get_device_name() if given.device == "cuda" else "cpu"
        record(
            f"recommend_recbole_quality_{given.device}",
            {"results": results, "budget": given.budget, "rate": given.rate, "card": card},
            given.results,
        )


if __name__ == "__main__":
    main()
