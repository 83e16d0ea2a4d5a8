"""Training throughput beside RecBole's on its own ml-100k file: the same model, batch and loss. runs on: cpu

Pairs (history -> next item) learned per processor second on one thread. RecBole 1.2.1 needs NumPy < 2, so
it lives in an environment of its own: --recbole-python ENV/bin/python, and the folder that holds ml-100k/ as
--path. Ours is measured twice: one pair a row, as RecBole does, and all positions of a window, as we train.
"""
# bench: by hand: needs RecBole's package and its ml-100k file

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

BATCH = 2048


def recbole(path: str, model_name: str, budget: float) -> dict[str, float]:
    """Runs inside RecBole's environment. `ray` is only imported for its tuner and is not needed here."""
    import types

    stub = types.ModuleType("ray")
    stub.tune = types.ModuleType("ray.tune")
    sys.modules["ray"], sys.modules["ray.tune"] = stub, stub.tune
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, init_seed

    torch.set_num_threads(1)
    settings = {
        "data_path": path, "use_gpu": False, "device": "cpu", "train_batch_size": BATCH, "loss_type": "CE",
        "train_neg_sample_args": None, "MAX_ITEM_LIST_LENGTH": 50, "hidden_size": 64, "embedding_size": 64,
        "n_layers": 2, "n_heads": 2, "inner_size": 256, "num_layers": 1, "dropout_prob": 0.2,
        "hidden_dropout_prob": 0.2, "attn_dropout_prob": 0.2, "show_progress": False, "state": "ERROR",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full", "group_by": "user"},
    }  # fmt: skip
    if model_name == "GRU4Rec":
        settings["hidden_size"] = 128
    sys.argv = sys.argv[:1]
    config = Config(model=model_name, dataset="ml-100k", config_dict=settings)
    init_seed(0, True)
    began = time.process_time()
    train, _, _ = data_preparation(config, create_dataset(config))
    prepared = time.process_time() - began
    model = get_model(model_name)(config, train.dataset)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    pairs, steps, began = 0, 0, time.process_time()
    for batch in train:
        optimizer.zero_grad()
        loss = model.calculate_loss(batch)
        loss.backward()
        optimizer.step()
        pairs, steps = pairs + len(batch), steps + 1
        if time.process_time() - began > budget:
            break
    spent = time.process_time() - began
    return {
        "pairs": pairs,
        "steps": steps,
        "cpu_seconds": spent,
        "pairs_per_second": pairs / spent,
        "preparation": prepared,
    }


def ours(path: str, method: str, budget: float, one_pair_a_row: bool) -> dict[str, float]:
    """The same network sizes, optimizer and batch of pairs, through our own loop's pieces."""
    import torch

    from fewer.recommend.data.reading import read_interactions
    from fewer.recommend.data.splits import leave_last_out
    from fewer.recommend.methods import Sizes, build_network
    from fewer.recommend.training.loop import TrainingPlan, _Run, batch_loss

    torch.set_num_threads(1)
    began = time.process_time()
    split = leave_last_out(read_interactions(Path(path) / "ml-100k" / "ml-100k.inter"))
    network = build_network(method, Sizes(length=50, dim=64, dropout=0.2), split.interactions.item_count)
    if one_pair_a_row:
        network.learns_from = "prefixes"
    plan = TrainingPlan(batch_size=BATCH, sequence_batch_size=BATCH // 50)
    run = _Run(network, split, plan, 50)
    prepared = time.process_time() - began
    network.train()
    generator = torch.Generator().manual_seed(0)
    pairs, steps, began = 0, 0, time.process_time()
    for positions in run._batches(0):
        loss, rows = batch_loss(run, positions, generator)
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        run.optimizer.step()
        pairs, steps = pairs + rows, steps + 1
        if time.process_time() - began > budget:
            break
    spent = time.process_time() - began
    return {
        "pairs": pairs,
        "steps": steps,
        "cpu_seconds": spent,
        "pairs_per_second": pairs / spent,
        "preparation": prepared,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recbole-python", required=True)
    parser.add_argument("--path", required=True, help="folder that holds ml-100k/ml-100k.inter")
    parser.add_argument("--budget", type=float, default=12.0, help="processor seconds per measurement")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peer:
        print("RESULT" + json.dumps(recbole(given.path, given.peer, given.budget)))
        return
    from recommend_record import record

    results: dict[str, dict] = {}
    for method, model in (("sasrec", "SASRec"), ("gru4rec", "GRU4Rec")):
        command = [
            given.recbole_python,
            __file__,
            "--peer",
            model,
            "--recbole-python",
            "-",
            "--path",
            given.path,
        ]
        command += ["--budget", str(given.budget)]
        peer = subprocess.run(command, capture_output=True, text=True)
        lines = [line for line in peer.stdout.splitlines() if line.startswith("RESULT")]
        if not lines:
            raise SystemExit(f"RecBole did not run:\n{peer.stderr[-2000:]}")
        theirs = json.loads(lines[0].removeprefix("RESULT"))
        pairwise, windows = (ours(given.path, method, given.budget, flag) for flag in (True, False))
        results[model] = {
            "recbole": theirs,
            "ours_one_pair_a_row": pairwise,
            "ours": windows,
            "ratio_one_pair_a_row": pairwise["pairs_per_second"] / theirs["pairs_per_second"],
            "ratio": windows["pairs_per_second"] / theirs["pairs_per_second"],
        }
        record("recommend_recbole", {"results": results, "batch": BATCH})


if __name__ == "__main__":
    main()
