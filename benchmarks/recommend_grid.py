"""Is the search worth it? Rank of the found length among all fixed lengths, and its share of the grid's time.
runs on: cpu

Validation NDCG@10, the same epochs for every fixed length. ml-100k needs the user's copy (--path).
"""

import argparse
from pathlib import Path

import torch
from recommend_record import interactions, record

from fewer.recommend.data.splits import leave_last_out
from fewer.recommend.methods import Sizes, automlp_shape
from fewer.recommend.search import SearchPlan, search_length, verify_by_grid
from fewer.recommend.training.loop import TrainingPlan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="games-core", choices=("games-core", "games", "ml-100k"))
    parser.add_argument("--path", type=Path)
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 2, 3, 5, 8, 12, 20])
    parser.add_argument("--search-epochs", type=int, default=10)
    parser.add_argument("--grid-epochs", type=int, default=10)
    parser.add_argument("--long-branch", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    split = leave_last_out(interactions(given.data, given.path))
    sizes = Sizes(layers=1, dropout=0.3, candidates=tuple(given.candidates), long_branch=given.long_branch)
    shape = automlp_shape(sizes, split.interactions.item_count)
    plan = SearchPlan(epochs=given.search_epochs, warmup=2, learning_rate=2e-3)
    found = search_length(shape, split, plan)
    training = TrainingPlan(epochs=given.grid_epochs, patience=given.grid_epochs, learning_rate=2e-3)
    grid = verify_by_grid(shape, split, training)
    record(
        f"recommend_grid_{given.data}",
        {
            "found": found.length,
            "probabilities": dict(zip(map(str, found.candidates), found.probabilities, strict=True)),
            "rank": 1 + [entry["length"] for entry in grid].index(found.length),
            "of": len(grid),
            "share_of_grid_time": found.cpu_seconds / sum(entry["cpu_seconds"] for entry in grid),
            "grid": grid,
            "path": found.path,
            "settings": {k: str(v) for k, v in vars(given).items() if k != "path"},
        },
    )


if __name__ == "__main__":
    main()
