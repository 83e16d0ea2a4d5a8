"""NDCG@10 of AutoMLP beside SASRec, GRU4Rec, Markov and popularity, one protocol and one loop.
runs on: cpu or cuda

Leave-last-out, full ranking, same length, dim and optimizer; every method is trained to early stopping on
validation NDCG@10 at each of --rates with the first seed, keeps the rate with the best validation figure, and
repeats it with the other seeds. ml-100k: your copy (--path). Finished runs are kept in the result file and
unfinished ones as checkpoints, so a stopped benchmark goes on. Parts run on several machines: give each
its own --part, then --join PART... .
"""
# bench: cpu, 120 min:

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from recommend_record import RESULTS, interactions, record, recorded

from fewer.core.device import isolated_randomness
from fewer.recommend.baselines.counting import LastItems, Markov, Popularity
from fewer.recommend.data.prefixes import Prefixes
from fewer.recommend.data.splits import Split, leave_last_out
from fewer.recommend.evaluate import evaluate
from fewer.recommend.methods import Sizes, build_network, own_loss
from fewer.recommend.training.encoders import NetworkScorer
from fewer.recommend.training.loop import TrainingPlan, train_network


@dataclass(frozen=True)
class Run:
    """One training."""

    method: str
    rate: float
    seed: int

    @property
    def label(self) -> str:
        return f"{self.method}, rate {self.rate:g}, seed {self.seed}"


def main() -> None:
    given = arguments()
    torch.set_num_threads(given.threads)
    name = f"recommend_quality_{given.data}"
    if given.join:
        parts = [recorded(f"{name}{part}", given.results) for part in given.join]
        runs = {label: run for part in parts for label, run in part["runs"].items()}
        counted = next((part["counting"] for part in parts if part["counting"]), None)
        counted = counted or recorded(name).get("counting", {})
        record(name, {"runs": runs, "counting": counted, "settings": parts[0]["settings"], **verdict(runs)})
        return
    data = interactions(given.data, given.path)
    split = leave_last_out(data)
    runs: dict[str, dict] = recorded(name + given.part, given.results).get("runs", {})
    settings = {k: str(v) for k, v in vars(given).items() if k not in ("path", "checkpoints", "results")}
    counted = counting(split) if given.counting else {}

    def save() -> None:
        table = {"runs": runs, "counting": counted, "settings": settings, **verdict(runs)}
        record(name + given.part, table, given.results)

    for rate in given.rates:
        for method in given.methods:
            complete(Run(method, rate, given.seeds[0]), split, given, runs)
            save()
    for seed in given.seeds[1:]:
        for method in given.methods:
            complete(Run(method, best_rate(runs, method), seed), split, given, runs)
            save()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="games-core", choices=("games-core", "games", "ml-100k"))
    parser.add_argument("--path", type=Path)
    parser.add_argument("--methods", nargs="+", default=["sasrec", "gru4rec", "automlp"])
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--short", type=int, default=5, help="AutoMLP's short-term length")
    parser.add_argument("--automlp-layers", type=int, default=1)
    parser.add_argument("--peer-layers", type=int, default=2, help="of the others (GRU4Rec always has one)")
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--patience", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=1024, help="pairs a step (AutoMLP)")
    parser.add_argument("--sequence-batch-size", type=int, default=128, help="windows a step (the others)")
    parser.add_argument("--counting", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--wall-seconds", type=float, help="per training; it goes on with the next call")
    parser.add_argument("--cpu-seconds", type=float, help="likewise, of processor time")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--graphs", action=argparse.BooleanOptionalAction, default=True, help="on a GPU")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoints", type=Path, default=Path("outputs/recommend_quality"))
    parser.add_argument(
        "--save", action=argparse.BooleanOptionalAction, default=True, help="write checkpoints"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--part", default="")
    parser.add_argument("--join", nargs="+")
    return parser.parse_args()


def complete(run: Run, split: Split, given: argparse.Namespace, runs: dict[str, dict]) -> None:
    """Trains one run to its end (or until its time is over) and measures the best epoch's weights."""
    if runs.get(run.label, {}).get("stopped") in ("early", "epochs"):
        return
    layers = given.automlp_layers if run.method == "automlp" else given.peer_layers
    sizes = Sizes(length=50, dim=64, layers=layers, dropout=given.dropout, candidates=(given.short,))
    plan = TrainingPlan(
        learning_rate=run.rate, patience=given.patience, batch_size=given.batch_size,
        sequence_batch_size=given.sequence_batch_size, wall_seconds=given.wall_seconds,
        cpu_seconds=given.cpu_seconds, seed=run.seed, graphs=given.graphs,
        loss=own_loss(run.method, "cross-entropy"),
    )  # fmt: skip
    items = split.interactions.item_count
    with isolated_randomness(run.seed):
        network = build_network(run.method, sizes, items).to(given.device)
    folder = given.checkpoints / given.data / run.label.replace(", ", "-").replace(" ", "-")
    saved = {"folder": folder, "resume": True} if given.save else {}
    result = train_network(network, split, plan, length=50, **saved)
    runs[run.label] = {
        "method": run.method,
        "rate": run.rate,
        "seed": run.seed,
        "test": evaluate(NetworkScorer(network, items), Prefixes(split, 50), split.test, (10,)),
        "validation_ndcg_at_10": result.best_ndcg,
        "best_epoch": result.best_epoch,
        "epochs": len(result.path),
        "stopped": result.stopped,
        "cpu_seconds": sum(entry["train_cpu_seconds"] for entry in result.path),
        "seconds": result.seconds,
        "card": torch.cuda.get_device_name() if given.device != "cpu" else None,
        "path": [round(entry["ndcg_at_10"], 5) for entry in result.path],
        "layers": layers,
    }
    if result.stopped != "time":
        for path in folder.glob("*"):
            path.unlink()


def counting(split: Split) -> dict[str, dict]:
    """The baselines that only count."""
    prefixes = Prefixes(split, 50)
    named = (("popularity", Popularity), ("last-item", LastItems), ("markov", Markov))
    return {label: evaluate(one.fit(split), prefixes, split.test, (10,)) for label, one in named}


def best_rate(runs: dict[str, dict], method: str) -> float:
    """The learning rate with the best validation figure, over the seeds that have run at it."""
    figures: dict[float, list[float]] = {}
    for run in runs.values():
        if run["method"] == method:
            figures.setdefault(run["rate"], []).append(run["validation_ndcg_at_10"])
    first = {rate: values[0] for rate, values in figures.items()}
    return max(first, key=lambda rate: first[rate])


def verdict(runs: dict[str, dict]) -> dict[str, object]:
    """Per method: its rate, and the mean test figure over seeds; AutoMLP's share of the better peer."""
    table: dict[str, dict] = {}
    for method in dict.fromkeys(run["method"] for run in runs.values()):
        rate = best_rate(runs, method)
        own = [run for run in runs.values() if run["method"] == method and run["rate"] == rate]
        figures = [run["test"]["ndcg_at_10"] for run in own]
        table[method] = {
            "rate": rate,
            "seeds": len(own),
            "ndcg_at_10": sum(figures) / len(figures),
            "hr_at_10": sum(run["test"]["hr_at_10"] for run in own) / len(own),
            "spread": statistics.stdev(figures) if len(figures) > 1 else None,
            "each": figures,
            "stopped": [run["stopped"] for run in own],
        }
    peers = [table[peer]["ndcg_at_10"] for peer in ("sasrec", "gru4rec") if peer in table]
    if "automlp" in table and peers:
        return {"models": table, "automlp_over_better_peer": table["automlp"]["ndcg_at_10"] / max(peers)}
    return {"models": table}


if __name__ == "__main__":
    main()
