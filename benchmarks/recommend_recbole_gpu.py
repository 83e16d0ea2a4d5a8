"""Training throughput on a GPU beside RecBole's own model code: the same data, batch and loss. runs on: cuda

Pairs (history -> next item) learned per second of wall time, ml-100k, 2,048 pairs a step. RecBole 1.2.1's
loader needs another environment; here its SASRec and GRU4Rec (--recbole: the package) get their padded
batches by plain indexing, which flatters them. Ours is measured one pair a row, as RecBole does, and as we
train: all positions of a window at once; in both the training loop's own steps, recorded as CUDA graphs.
Measurements alternate --rounds times; the medians are compared.
"""
# bench: by hand: needs RecBole's package and its ml-100k file

import argparse
import importlib.util
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from recommend_record import RESULTS, record
from torch import nn

from fewer.core.device import seeded
from fewer.recommend.data.reading import read_interactions
from fewer.recommend.data.splits import Split, leave_last_out
from fewer.recommend.methods import Sizes, build_network
from fewer.recommend.training.loop import TrainingPlan, _Run

BATCH, LENGTH, ITEM, LIST, COUNT = 2048, 50, "item_id", "item_id_list", "item_length"
CONFIG = {
    "USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": ITEM, "LIST_SUFFIX": "_list", "NEG_PREFIX": "neg_",
    "ITEM_LIST_LENGTH_FIELD": COUNT, "MAX_ITEM_LIST_LENGTH": LENGTH, "loss_type": "CE", "n_layers": 2,
    "n_heads": 2, "inner_size": 256, "hidden_dropout_prob": 0.2, "attn_dropout_prob": 0.2,
    "hidden_act": "gelu", "layer_norm_eps": 1e-12, "initializer_range": 0.02, "embedding_size": 64,
    "num_layers": 1, "dropout_prob": 0.2,
}  # fmt: skip


def recbole_model(source: Path, name: str, items: int, device: str) -> nn.Module:
    """RecBole's class without the rest of the package: four files, and stand-ins for its enumerations."""
    utils = types.ModuleType("recbole.utils")
    for word in ("ModelType", "InputType", "FeatureSource", "FeatureType"):
        setattr(utils, word, type(word, (), {"__getattr__": lambda self, member: member})())
    utils.set_color = str  # pyright: ignore
    for package in ("recbole", "recbole.model", "recbole.model.sequential_recommender"):
        sys.modules.setdefault(package, types.ModuleType(package))
    sys.modules["recbole.utils"] = utils
    for part in ("layers", "loss", "abstract_recommender", f"sequential_recommender.{name.lower()}"):
        full = f"recbole.model.{part}"
        if full in sys.modules and not part.startswith("sequential"):
            continue
        spec = importlib.util.spec_from_file_location(full, source / "model" / f"{part.replace('.', '/')}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    dataset = types.SimpleNamespace(num=lambda field: items + 1)
    settings = {**CONFIG, "device": device, "hidden_size": 128 if name == "GRU4Rec" else 64}
    module = sys.modules[f"recbole.model.sequential_recommender.{name.lower()}"]
    return getattr(module, name)(settings, dataset).to(device)


def recbole_steps(model: nn.Module, split: Split, device: str, rate: float = 1e-3) -> Iterator[int]:
    """Right-padded batches, loss, Adam; yields the pairs of each step."""
    run = _Run(nn.Linear(1, 1), split, TrainingPlan(), LENGTH)
    lists, lengths = torch.zeros(len(split.train), LENGTH, dtype=torch.long), []
    positions = torch.from_numpy(split.train)
    lengths = run.prefixes.lengths(positions)
    for start in range(0, len(positions), BATCH):
        histories = run.prefixes.gather(positions[start : start + BATCH]).histories
        width = histories.shape[1]
        shift = torch.arange(width) + width - lengths[start : start + BATCH, None]
        rows = histories.gather(1, shift.clamp(max=width - 1)) * (shift < width)
        lists[start : start + BATCH, :width] = rows
    targets = run.prefixes.items[positions].long()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    model.train()
    while True:
        for rows in torch.randperm(len(positions)).split(BATCH):
            batch = {LIST: lists[rows], COUNT: lengths[rows], ITEM: targets[rows]}
            loss = model.calculate_loss({k: v.to(device) for k, v in batch.items()})  # pyright: ignore
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            yield len(rows)


def our_epochs(method: str, split: Split, device: str, one_pair_a_row: bool) -> Iterator[int]:
    """Our training loop with the same sizes; yields the pairs of each epoch."""
    network = build_network(method, Sizes(length=LENGTH, dim=64, dropout=0.2), split.interactions.item_count)
    network = network.to(device).train()
    if one_pair_a_row:
        network.learns_from = "prefixes"  # pyright: ignore
    plan = TrainingPlan(batch_size=BATCH, sequence_batch_size=BATCH // LENGTH)
    run, epoch = _Run(network, split, plan, LENGTH), 0
    while True:
        yield run._learn(epoch, seeded(0, epoch))[1]
        epoch += 1


def pairs_per_second(steps: Iterator[int], seconds: float) -> float:
    pairs, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        pairs += next(steps)
    return pairs / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recbole", type=Path, required=True, help="folder of the recbole package (1.2.1)")
    parser.add_argument("--path", type=Path, required=True, help="your ml-100k interactions")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    split = leave_last_out(read_interactions(given.path))
    results: dict[str, dict] = {}
    for method, name in (("sasrec", "SASRec"), ("gru4rec", "GRU4Rec")):
        model = recbole_model(given.recbole, name, split.interactions.item_count, given.device)
        runs: dict[str, Callable[[], Iterator[int]]] = {
            "recbole": lambda model=model: recbole_steps(model, split, given.device),
            "ours_one_pair_a_row": lambda method=method: our_epochs(method, split, given.device, True),
            "ours": lambda method=method: our_epochs(method, split, given.device, False),
        }
        steps = {key: make() for key, make in runs.items()}
        for one in steps.values():
            pairs_per_second(one, given.seconds)  # warm up, and record
        rounds = [
            {k: pairs_per_second(s, given.seconds) for k, s in steps.items()} for _ in range(given.rounds)
        ]
        median = {key: statistics.median(r[key] for r in rounds) for key in steps}
        results[name] = {
            "pairs_per_second": median,
            "rounds": rounds,
            "ratio_one_pair_a_row": median["ours_one_pair_a_row"] / median["recbole"],
            "ratio": median["ours"] / median["recbole"],
        }
        card = torch.cuda.get_device_name() if given.device == "cuda" else "cpu"
        record("recommend_recbole_gpu", {"results": results, "batch": BATCH, "card": card}, given.results)


if __name__ == "__main__":
    main()
