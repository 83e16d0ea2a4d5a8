"""Kills a process fifty times while it saves checkpoints: the newest one must load every time, and be right.

Each checkpoint's tensors are a function of its step, so a file that loads is also compared with what it
should hold.
Run: python benchmarks/kill_while_saving.py --output benchmarks/results/kill_while_saving.json
"""
# bench: cpu, 5 min: --output benchmarks/results/kill_while_saving.json

import argparse
import os
import platform
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from fewer.core.checkpoint import latest_checkpoint, save_checkpoint
from fewer.core.files import write_json


def contents(step: int, megabytes: int) -> dict[str, torch.Tensor]:
    """Tensors that only this step has."""
    values = torch.arange(megabytes * 2**18, dtype=torch.float32) + step
    return {"model/weight": values, "optimizer/moment": -values[: len(values) // 2]}


def save_for_ever(folder: Path, first: int, megabytes: int) -> None:
    step = first
    while True:
        step += 1
        save_checkpoint(folder, step, contents(step, megabytes), {"seed": 0, "steps": 10**9}, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--megabytes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    random = np.random.default_rng(options.seed)
    began, loaded, unfinished, step = time.monotonic(), 0, 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_checkpoint(folder, 0, contents(0, options.megabytes), {"seed": 0, "steps": 10**9}, 2)
        for _ in range(options.kills):
            child = os.fork()
            if child == 0:
                save_for_ever(folder, step, options.megabytes)
            time.sleep(float(random.uniform(0.01, 0.4)))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            unfinished = sum(path.name.endswith(".part") for path in folder.iterdir())
            found = latest_checkpoint(folder)
            assert found is not None
            wanted = contents(found.step, options.megabytes)
            loaded += all(torch.equal(found.tensors[key], value) for key, value in wanted.items())
            assert found.step >= step
            step = found.step
    report = {
        "machine": platform.machine(),
        "torch": torch.__version__,
        "kills": options.kills,
        "newest_checkpoint_loaded_and_right": loaded,
        "unfinished_files_left": unfinished,
        "checkpoints_written": step,
        "megabytes_each": 1.5 * options.megabytes,
        "seconds": time.monotonic() - began,
    }
    if options.output:
        write_json(options.output, report)
    print(report)
    assert loaded == options.kills


if __name__ == "__main__":
    main()
