"""Time of ReLU linear attention when tokens double, beside softmax attention in the same run (CPU).

Seconds are CPU time of this process with one thread, so that a busy machine does not count; the best of
several runs is reported and all are kept. Run: python benchmarks/linear_attention.py
"""
# bench: cpu, 1 min:

import json
import platform
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention

from fewer.generate.transformer.attention import relu_linear_attention

LINEAR_TOKENS = (8192, 16_384, 32_768, 65_536)
SOFTMAX_TOKENS = (1024, 2048, 4096)
# Two heads keep each tensor below 32 MiB, above which glibc maps fresh pages for every allocation.
HEADS, HEAD_DIM, RUNS = 2, 32, 15


def seconds(attention: Callable[..., torch.Tensor], tokens: int, runs: int) -> list[float]:
    inputs = torch.rand(3, 1, HEADS, tokens, HEAD_DIM).unbind()
    attention(*inputs)
    taken = []
    for _ in range(runs):
        began = time.process_time()
        attention(*inputs)
        taken.append(time.process_time() - began)
    return taken


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    times = {
        "linear": {tokens: seconds(relu_linear_attention, tokens, RUNS) for tokens in LINEAR_TOKENS},
        "softmax": {tokens: seconds(scaled_dot_product_attention, tokens, 3) for tokens in SOFTMAX_TOKENS},
    }
    best = {kind: {tokens: min(taken) for tokens, taken in rows.items()} for kind, rows in times.items()}
    growth = {kind: [b / a for a, b in pairwise(rows.values())] for kind, rows in best.items()}
    result = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "heads": HEADS,
        "head_dim": HEAD_DIM,
        "growth_per_doubling": growth,
        "seconds": times,
    }
    path = Path(__file__).parent / "results" / "linear_attention.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"growth_per_doubling": growth, "best": best}, indent=1))


if __name__ == "__main__":
    main()
