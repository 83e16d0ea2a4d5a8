"""One picture on 1, 2, 4, 8 devices: steps, decoding, whole pictures, and where the time goes. runs on: gpu

Without a GPU it is a dry run of everything with tiny shapes, where times mean nothing. Processes are started
once, one a device; smaller counts are parts of that world, so it also runs as
    torchrun --nproc-per-node 8 benchmarks/scaling.py
Started without torchrun, ranks that say nothing for a minute are ended and the items left are gone through
by new ones, with exchanges as collectives.
Both sides run the engine (fused kernels, a CUDA graph a step, collectives inside it), so what is compared is
one device with several, not slow code with fast code. Peers' ratios to hold beside it: xDiT, Sana-1.6B at
4096 px, A100: 2 ranks 1.53-1.72 x (no guidance split), 8 ranks 4.40 x; DistriFusion, SDXL at 3840 px: 2 ranks
1.8 x, 8 ranks 6.1 x (6.6 x with guidance split). Random weights: speed and error only, no pictures.
"""
# bench: gpu, 5 min:

import argparse
import os
import tempfile
import time
import traceback
from pathlib import Path

import torch
from record import record
from scaling_items import ITEMS, Stand
from scaling_table import table
from scaling_unet import UNET_MODES
from scaling_watch import watched

from fewer.core.ranks import announced_ranks, under_torchrun
from fewer.parallel import Group, run_on_devices

PEERS = {
    "xDiT, Sana-1.6B, 4096 px, A100, 2 devices": {
        "ulysses": 1.72,
        "pipefusion": 1.56,
        "ring": 1.53,
        "cfg": 2.10,
    },
    "xDiT, Sana-1.6B, 4096 px, A100, 8 devices": {"cfg + ulysses + ring": 4.40},
    "DistriFusion, SDXL, A100, 2 devices": {"1024": 1.5, "2048": 1.8, "3840": 1.8},
    "DistriFusion, SDXL, A100, 8 devices": {"1024": 2.8, "2048": 4.9, "3840": 6.1},
}


def rank_main(group: Group, options: argparse.Namespace) -> list[dict[str, object]]:
    """Every rank runs every item; a failing item is reported and costs only itself."""
    stand = Stand(group, options)
    for name in options.items:
        stand.emit(item=name, begun=True)
        left = min(float(seconds) for seconds in group.gather_object(stand.seconds_left()))  # pyright: ignore
        if left < 0:
            stand.emit(item=name, skipped="out of time")
            continue
        began = time.monotonic()
        try:
            with torch.no_grad():
                ITEMS[name](stand)
        except Exception as error:
            if os.environ.get("SCALING_TRACE"):
                traceback.print_exc()
            stand.emit(item=name, failed=f"{type(error).__name__}: {str(error)[:400]}")
        stand.emit(item=name, seconds=round(time.monotonic() - began, 1))
        stand.tidy()
    return stand.rows


def main() -> None:
    options = arguments()
    began = time.monotonic()
    options.began = time.time()
    options.deadline = options.began + options.seconds
    if under_torchrun():
        rows = run_on_devices(
            rank_main,
            max(options.devices),
            options,
            device_type=options.device,
            timeout_seconds=options.timeout,
        )
        if int(os.environ["RANK"]):
            return
        assert isinstance(rows, list)
    else:
        with tempfile.TemporaryDirectory() as folder:
            options.lines = options.lines or Path(folder) / "lines.jsonl"
            rows = watched(rank_main, options)
    rows = [row for row in rows if "begun" not in row]
    figures = {
        "shape": options.shape, "devices": options.devices, "peers": PEERS, "rows": rows,
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    for line in table(rows):
        print(line)
    for peer, ratios in PEERS.items():
        print(f"{peer}: " + ", ".join(f"{name} {ratio:.2f} x" for name, ratio in ratios.items()))
    print(record(options.name, figures))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--shape", help="a published Sana, or tiny (default: sana-1.6b-1024 on GPUs)")
    parser.add_argument("--sizes", type=int, nargs="+", help="pixels (default: 1024 2048 4096 on GPUs)")
    parser.add_argument("--decode-sizes", type=int, nargs="+", help="pixels (default: the two largest)")
    parser.add_argument("--unet-sizes", type=int, nargs="+", help="pixels (default: 1024 3840 on GPUs)")
    parser.add_argument("--unet-modes", nargs="+", choices=UNET_MODES, default=list(UNET_MODES))
    parser.add_argument(
        "--devices", type=int, nargs="+", help="counts (default: 1 2 4 8, as far as they are here)"
    )
    parser.add_argument("--items", nargs="+", choices=list(ITEMS), default=list(ITEMS))
    parser.add_argument("--steps", type=int, default=20, help="of a whole picture")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=540.0, help="no item is begun after this")
    parser.add_argument("--timeout", type=float, default=120.0, help="of one collective")
    parser.add_argument(
        "--silence", type=float, default=60.0, help="seconds without a row that end the ranks"
    )
    parser.add_argument(
        "--exchange", choices=("auto", "off"), default="auto", help="off: collectives, not inside kernels"
    )
    parser.add_argument(
        "--border", choices=("tokens", "hidden"), default="hidden", help="what border rows are"
    )
    parser.add_argument("--texts", type=Path, help="of parallel_quality.py --texts, for the item quality")
    parser.add_argument("--judge", type=Path, help="of builtin_model.py --judge, for the item quality")
    parser.add_argument("--lines", type=Path, help="a file to which each row is added as it is measured")
    parser.add_argument("--name", default="scaling", help="of the file under benchmarks/results")
    options = parser.parse_args()
    gpus = torch.cuda.device_count()
    if options.device == "auto":
        options.device = "cuda" if gpus else "cpu"
    dry = options.device == "cpu"
    options.shape = options.shape or ("tiny" if dry else "sana-1.6b-1024")
    options.sizes = options.sizes or ([256] if dry else [1024, 2048, 4096])
    options.unet_sizes = options.unet_sizes or ([256] if dry else [1024, 3840])
    if dry:
        options.repeats, options.steps = min(options.repeats, 3), min(options.steps, 3)
    here = announced_ranks() if announced_ranks() > 1 else (2 if dry else gpus)
    options.devices = options.devices or [count for count in (1, 2, 4, 8) if count <= here]
    return options


if __name__ == "__main__":
    main()
