"""Time against history length: AutoMLP must grow linearly, SASRec grows faster. runs on: cpu

Batch of 8, dim 64, 2 layers, one thread; processor seconds of this process, minimum of the repeats.
"""
# bench: cpu, 5 min:

import argparse
import math
import time

import torch
from recommend_record import record

from fewer.recommend.automlp import AutoMLPNetwork, AutoMLPShape
from fewer.recommend.baselines.sasrec import SASRec
from fewer.recommend.baselines.transformer import TransformerShape

LENGTHS = (200, 400, 800, 1600, 3200)


def seconds(network: torch.nn.Module, length: int, repeats: int, run: str = "forward") -> list[float]:
    """Forward passes over full histories, in evaluation mode."""
    histories = torch.randint(1, 1001, (8, length), generator=torch.Generator().manual_seed(0))
    network.eval()
    encode, times = getattr(network, run), []
    with torch.no_grad():
        encode(histories)
        for _ in range(repeats):
            began = time.process_time()
            encode(histories)
            times.append(time.process_time() - began)
    return times


def slope(times: dict[int, float]) -> float:
    """Least-squares slope of log time over log length."""
    x = torch.tensor([math.log(n) for n in times])
    y = torch.tensor([math.log(t) for t in times.values()])
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    raw: dict[str, dict[int, list[float]]] = {"automlp": {}, "automlp_all_rows": {}, "sasrec": {}}
    raw["sasrec_last_row"] = {}
    for length in LENGTHS:
        shape = AutoMLPShape(items=1000, length=length, candidates=(10,), hidden_channel=128)
        raw["automlp"][length] = seconds(AutoMLPNetwork(shape), length, repeats)
        # readout "mean" needs every row of the last layer: no saving from computing only the last one
        every = AutoMLPShape(items=1000, length=length, candidates=(10,), hidden_channel=128, readout="mean")
        raw["automlp_all_rows"][length] = seconds(AutoMLPNetwork(every), length, repeats)
        sasrec = SASRec(TransformerShape(items=1000, length=length, heads=1, hidden=64, full_histories=True))
        raw["sasrec"][length] = seconds(sasrec, length, repeats, "encode_all")  # as published
        raw["sasrec_last_row"][length] = seconds(sasrec, length, repeats)
    best = {name: {n: min(t) for n, t in by.items()} for name, by in raw.items()}
    record(
        "recommend_length",
        {
            "slopes": {name: slope(by) for name, by in best.items()},
            "sasrec_over_automlp_at_3200": best["sasrec"][3200] / best["automlp"][3200],
            "sasrec_last_row_over_automlp_at_3200": best["sasrec_last_row"][3200] / best["automlp"][3200],
            "sasrec_over_automlp_all_rows_at_3200": best["sasrec"][3200] / best["automlp_all_rows"][3200],
            "seconds": best,
            "raw": raw,
        },
    )


if __name__ == "__main__":
    main()
