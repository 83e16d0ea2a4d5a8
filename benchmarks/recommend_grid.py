"""Is the search worth it? Rank of the found length among all fixed lengths, and its share of the grid's time.
runs on: cpu or cuda

The search is what `fewer recommend train` does: probabilities, then a trial of the lengths they cannot tell
apart. Every fixed length is trained to early stopping on validation NDCG@10 with the same settings. Searching
and every length go on from their last epoch when the script is started again; parts may run apart
(--lengths, --no-search) and be joined (--join). ml-100k needs the user's copy (--path). Times are of the
processor, or of the wall on a GPU, validation included; all epochs of a trial count as search.
"""
# bench: cpu, 60 min:

import argparse
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import torch
from recommend_record import RESULTS, interactions, record, recorded

from fewer.core.device import isolated_randomness
from fewer.recommend.automlp import AutoMLPNetwork, AutoMLPShape
from fewer.recommend.data.splits import Split, leave_last_out
from fewer.recommend.methods import Sizes, automlp_shape
from fewer.recommend.search import SearchPlan, SearchResult, search_length
from fewer.recommend.training.loop import TrainingPlan, train_network
from fewer.recommend.trials import settle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="games-core", choices=("games-core", "games", "ml-100k"))
    parser.add_argument("--path", type=Path)
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 2, 3, 5, 8, 12, 20])
    parser.add_argument("--lengths", type=int, nargs="+", help="of the grid, in this run; default: all")
    parser.add_argument("--search-epochs", type=int, default=10)
    parser.add_argument("--finalists", type=int, default=SearchPlan().finalists)
    parser.add_argument("--penalty", type=float, default=SearchPlan().penalty)
    parser.add_argument("--part", default="", help="results of other settings go to a file of their own")
    parser.add_argument("--search", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--grid", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--join", nargs="+", help="parts (their --part) to put together into one result")
    parser.add_argument("--patience", type=int, default=5)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--long-branch", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--cpu-seconds", type=float)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--checkpoints", type=Path, default=Path("outputs/recommend_grid"))
    parser.add_argument(
        "--average", type=int, nargs="+", help="seeds whose results to compare with their mean"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    branch = "" if given.long_branch else "_short"
    plain = f"recommend_grid_{given.data}{branch}_seed{given.seed}"
    if given.join:
        join(plain, given.join, given.results)
        return
    if given.average:
        average(given.data, branch, given.average, given.results)
        return
    name = plain + given.part
    split = leave_last_out(interactions(given.data, given.path))
    sizes = Sizes(layers=1, dropout=0.3, candidates=tuple(given.candidates), long_branch=given.long_branch)
    shape = automlp_shape(sizes, split.interactions.item_count)
    folder, facts = given.checkpoints / name, recorded(name, given.results)
    facts.setdefault("settings", {k: str(getattr(given, k)) for k in ("patience", "rate", "device")})
    if "search" not in facts and given.search:
        found = search(shape, split, given, folder)
        facts["search"] = asdict(found)
        record(name, facts, given.results)
    grid = facts.setdefault("grid", {})
    for length in (given.lengths or given.candidates) if given.grid else ():
        if grid.get(str(length), {}).get("stopped") != "early":
            grid[str(length)] = fixed_length(length, shape, split, given, folder / str(length))
            record(name, {**facts, **verdict(facts)}, given.results)
    shutil.rmtree(folder, ignore_errors=True)


def training(given: argparse.Namespace) -> TrainingPlan:
    return TrainingPlan(
        patience=given.patience, learning_rate=given.rate, cpu_seconds=given.cpu_seconds, seed=given.seed
    )


def search(shape: AutoMLPShape, split: Split, given: argparse.Namespace, folder: Path) -> SearchResult:
    """Probabilities, then the trial; a search that was decided before its trial ended is recorded too."""
    plan = SearchPlan(
        epochs=given.search_epochs, learning_rate=given.rate, validation_batch_size=1024, seed=given.seed,
        penalty=given.penalty,
    )  # fmt: skip
    device = torch.device(given.device)
    found = search_length(shape, split, plan, device=device, folder=folder / "search", resume=True)
    facts = {"search_before_trials": asdict(found)}
    record(f"recommend_grid_{given.data}_seed{given.seed}{given.part}_proposal", facts, given.results)
    settle(found, shape, split, training(given), given.finalists, device=device, folder=folder / "trials")
    return found


def join(name: str, parts: list[str], results: Path) -> None:
    """One result of several: the search of the part that has one, the lengths of all."""
    facts: dict = {}
    for part in parts:
        one = recorded(name + part, results)
        grid = {**facts.get("grid", {}), **one.get("grid", {})}
        facts = {**one, **facts, "grid": grid}
    record(name, {**facts, **verdict(facts)}, results)


def fixed_length(
    length: int, shape: AutoMLPShape, split: Split, given: argparse.Namespace, folder: Path
) -> dict[str, object]:
    """One length of the grid."""
    with isolated_randomness(given.seed):
        network = AutoMLPNetwork(replace(shape, candidates=(length,))).to(given.device)
    result = train_network(network, split, training(given), length=shape.length, folder=folder, resume=True)
    return {
        "ndcg_at_10": result.best_ndcg,
        "epochs": len(result.path),
        "stopped": result.stopped,
        "cpu_seconds": result.cpu_seconds,
        "seconds": result.seconds,
        "path": [round(entry["ndcg_at_10"], 5) for entry in result.path],
    }


def average(data: str, branch: str, seeds: list[int], results: Path) -> None:
    """Every length's mean over the seeds, and where each seed's found length stands there and in its own
    grid: one seed's figures differ by more than most lengths do."""
    runs = {seed: recorded(f"recommend_grid_{data}{branch}_seed{seed}", results) for seed in seeds}
    lengths = next(iter(runs.values()))["grid"]
    mean = {n: sum(run["grid"][n]["ndcg_at_10"] for run in runs.values()) / len(runs) for n in lengths}
    order = sorted(mean, key=lambda length: -mean[length])
    found = {
        seed: {
            "length": run["found"],
            "rank_in_own_grid": run["rank"],
            "rank_in_mean": 1 + order.index(str(run["found"])),
            "share_of_grid_time": run["share_of_grid_time"],
            "share_of_grid_epochs": epochs_of(run) / sum(entry["epochs"] for entry in run["grid"].values()),
        }
        for seed, run in runs.items()
    }
    facts = {"found": found, "of": len(order), "order": order, "mean_ndcg_at_10": mean}
    record(f"recommend_grid_{data}{branch}_mean", facts, results)


def epochs_of(run: dict) -> int:
    """Of the search's shared network and of all trials."""
    return len(run["search"]["path"]) + sum(trial["epochs"] for trial in run["search"]["trials"])


def verdict(facts: dict) -> dict[str, object]:
    """Where the found length stands, and the search's time over the grid's."""
    grid, found = facts["grid"], facts.get("search", {}).get("length")
    order = sorted(grid, key=lambda length: -grid[length]["ndcg_at_10"])
    if str(found) not in grid:
        return {}
    clock = "cpu_seconds" if facts["settings"]["device"] == "cpu" else "seconds"
    spent = sum(entry[clock] for entry in grid.values())
    return {
        "found": found,
        "rank": 1 + order.index(str(found)),
        "of": len(order),
        "order": order,
        "share_of_grid_time": facts["search"][clock] / spent,
    }


if __name__ == "__main__":
    main()
