"""Time and memory of quantizing a DiT-like model of width 1152 on the CPU.

A block has q, k, v, out (1152 x 1152), fc1 and fc2 (4608) with GELU: 15.9 million parameters; 12 or 13 blocks
are 200 million. --blocks N measures fewer and states it; time and disk grow linearly with blocks, memory does
not. Run: python benchmarks/quantize_dit.py --blocks 13
"""
# bench: cpu, 10 min: --blocks 13

import argparse
import json
import os
import platform
import time
from pathlib import Path

import torch
from torch import nn

from fewer.quantize import FAST, quantize

WIDTH, TOKENS = 1152, 256


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm1(x)
        heads = [
            part.unflatten(-1, (-1, 72)).transpose(1, 2)
            for part in (self.to_q(h), self.to_k(h), self.to_v(h))
        ]
        x = x + self.to_out(nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x)), approximate="tanh"))


class Dit(nn.Module):
    def __init__(self, blocks: int, width: int = WIDTH) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/quantize_dit.json"))
    parser.add_argument("--blocks", type=int, default=13)
    parser.add_argument("--format", default="int4")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--machine", default="CPU, shared with other work", help="noted beside the figures")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = Dit(arguments.blocks).to(torch.bfloat16)
    batches = [torch.randn(2, TOKENS, WIDTH).to(torch.bfloat16) for _ in range(4)]
    with torch.no_grad():
        model(batches[0])
    small = Dit(1, 72).to(torch.bfloat16)  # whatever libraries set aside at their first use is not counted
    quantize(small, arguments.format, arguments.rank, lambda: small(batches[0][..., :72]), recipe=FAST)
    Path("/proc/self/clear_refs").write_text("5")
    before, began, busy = peak_bytes(), time.perf_counter(), time.process_time()
    quantize(
        model, arguments.format, arguments.rank, lambda: [model(batch) for batch in batches], recipe=FAST
    )
    seconds, extra = time.perf_counter() - began, peak_bytes() - before
    busy = time.process_time() - busy
    parameters = arguments.blocks * (4 * WIDTH**2 + 8 * WIDTH**2)
    layer = 4 * WIDTH * WIDTH * 4  # the largest layer in fp32, as it is worked on
    result = {
        "parameters": parameters,
        "blocks": arguments.blocks,
        "format": arguments.format,
        "rank": arguments.rank,
        "recipe": "FAST: 19 candidates on 128 rows, 5 rounds on 512, randomised SVD, 64 MiB of samples",
        "seconds": round(seconds, 1),
        "cpu_seconds": round(busy, 1),
        "cpu_seconds_for_200_million": round(busy * 200e6 / parameters, 1),
        "extrapolated": parameters < 190e6,
        "peak_extra_bytes": extra,
        "bar_bytes": 2 * layer + 64 * 2**20,
        "mean_error": sum(r.error for r in model.quantization_reports) / len(model.quantization_reports),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), "
        f"{len(os.sched_getaffinity(0))} cores; {arguments.machine}",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
