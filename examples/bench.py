"""A dry run of a benchmark: the engine's linear layer beside its peers, with shapes that a CPU can do."""

import json
import sys
from pathlib import Path

from fewer.bench import BenchRequest, bench_command
from fewer.core.progress import SilentProgress


def main() -> None:
    folder = Path(__file__).parents[1] / "benchmarks"
    request = BenchRequest(name="linear", tiny=True, device="cpu", folder=folder)
    figures = bench_command(request, SilentProgress())["figures"]
    for shape, result in figures.items():
        if isinstance(result, dict):
            rows = {
                name: row.get("median_ms", row.get("skipped")) for name, row in result["contenders"].items()
            }
            sys.stdout.write(f"{shape}: {json.dumps(rows, indent=1)}\n")


if __name__ == "__main__":
    main()
