"""How the engine's benchmarks measure: contenders one after another in one process, each fresh, on one clock.

Times are medians with all raw values kept: CUDA events on a GPU, the wall clock on a CPU (a dry run that
proves the script, nothing else). A contender that is not installed or fails is named with its reason.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from record import record
from torch import Tensor

# What one H100 SXM reaches: specified peaks (FLOP/s, bytes/s), the yardstick of "share of the floor".
PEAK_BF16, PEAK_INT8, PEAK_BYTES = 989e12, 1979e12, 3.35e12

Figures = dict[str, object]


def options(name: str) -> argparse.Namespace:
    """The same in every script: where, how often, and which of all works and contenders."""
    parser = argparse.ArgumentParser(prog=name)
    parser.add_argument("--device", help="cuda; a CPU must be asked for, or --tiny")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="small shapes, few runs: does the script work?")
    parser.add_argument("--output", type=Path, help="JSON file beside or instead of benchmarks/results")
    parser.add_argument(
        "--only",
        default="",
        help="run contenders whose name contains this, or one of several parted by |; =name",
    )
    parser.add_argument("--works", default="", help="sizes or shapes whose title contains this")
    given = parser.parse_args()
    if given.device is None and not (torch.cuda.is_available() or given.tiny):
        parser.error("there is no GPU, and real sizes take a CPU hours; add --tiny, or --device cpu")
    given.device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    given.runs = 2 if given.tiny else max(given.runs, 20)
    return given


def measure(function: Callable[[], object], device: str, runs: int) -> Figures:
    """Median and raw milliseconds, and the memory that a call adds to what rests there, in GiB."""
    gpu = device.startswith("cuda")
    function()
    if not gpu:
        times = [_wall(function) for _ in range(runs)]
        return {"median_ms": statistics.median(times), "raw_ms": times}
    torch.cuda.synchronize()
    once = _wall(lambda: (function(), torch.cuda.synchronize()))
    # What takes long varies little: no more than about 6 s each, but never fewer than five runs.
    runs = max(min(runs, 5), min(runs, int(6000 / max(once, 1e-3))))
    for _ in range(3 if once < 300 else 0):
        function()
    torch.cuda.synchronize()
    resting = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
    for start, end in pairs:
        start.record()
        function()
        end.record()
    torch.cuda.synchronize()
    times = [start.elapsed_time(end) for start, end in pairs]
    added = (torch.cuda.max_memory_allocated() - resting) / 2**30
    return {"median_ms": statistics.median(times), "raw_ms": times, "added_gib": round(added, 3)}


def captured(function: Callable[[], Tensor], device: str) -> Callable[[], object]:
    """The call as one CUDA graph; on a CPU the call itself."""
    if not device.startswith("cuda"):
        return function
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        graph.kept_output = function()  # type: ignore[attr-defined]
    return graph.replay


def contest(
    contenders: dict[str, Callable[[], Figures]],
    floor_ms: dict[str, float] | None = None,
    only: str = "",
    keep: Callable[[dict[str, Figures]], None] | None = None,
) -> dict[str, Figures]:
    """Runs each contender; adds its share of the floor that its name starts with, and frees its memory.

    `keep` is given all rows so far after each contender, so that what ends early loses nothing.
    """
    rows: dict[str, Figures] = {}
    for name, run in contenders.items():
        if not wanted(name, only):
            continue
        try:
            row = run()
        except ImportError as error:
            row = {"skipped": f"not installed: {error.name}"}
        except Exception as error:  # one failing contender must not cost the others their GPU time
            row = {"skipped": f"{type(error).__name__}: {str(error)[:300]}"}
        for start, floor in (floor_ms or {}).items():
            median = row.get("median_ms")
            if name.startswith(start) and isinstance(median, float):
                row["share_of_floor"] = round(floor / median, 4)
        rows[name] = row
        if keep is not None:
            keep(rows)
        print(f"{name}: {row.get('median_ms', row.get('skipped'))}", file=sys.stderr, flush=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return rows


def wanted(name: str, only: str) -> bool:
    """Whether `only`, parts joined by "|", asks for a contender: one is in its name, or after "=" is it."""
    return any(part[1:] == name if part.startswith("=") else part in name for part in only.split("|"))


def needs_gpu(device: str, run: Callable[[], Figures]) -> Callable[[], Figures]:
    """The contender, or on a CPU the reason why it is left out: compiling for one proves nothing here."""
    if device.startswith("cuda"):
        return run
    return lambda: {"skipped": "needs a GPU"}


def ratios(rows: dict[str, Figures], ours: str) -> dict[str, float]:
    """How many times as long as `ours` each other contender took."""
    own = rows.get(ours, {}).get("median_ms")
    if not isinstance(own, float):
        return {}
    others = {name: row.get("median_ms") for name, row in rows.items() if name != ours}
    return {name: round(time / own, 3) for name, time in others.items() if isinstance(time, float)}


def keeping(
    name: str, results: dict[str, object], title: str, given: argparse.Namespace
) -> Callable[[dict[str, Figures]], None]:
    """What `contest` calls after each contender: the file is written with all results so far."""

    def keep(rows: dict[str, Figures]) -> None:
        store(name, {**results, title: {"contenders": rows}}, given)

    return keep


def store(name: str, figures: Figures, given: argparse.Namespace) -> str:
    """Writes benchmarks/results/NAME.json (not of a dry run) and --output; returns the text."""
    summary = {**figures, "tiny": given.tiny, "device": given.device}
    text = json.dumps(summary, indent=1) if given.tiny else record(name, summary).read_text()
    if given.output is not None:
        given.output.write_text(text)
    return text


def finish(name: str, figures: Figures, given: argparse.Namespace) -> None:
    """As `store`, and prints the figures; where `--works` or `--only` left nothing, an error and no file."""
    if not _measured(figures):
        print(f"nothing is called so: --works {given.works!r}, --only {given.only!r}", file=sys.stderr)
        raise SystemExit(2)
    print(store(name, figures, given))


def _measured(figures: object) -> bool:
    """Whether a time, or the reason why there is none, stands anywhere in the figures."""
    if isinstance(figures, list):
        return any(map(_measured, figures))
    if not isinstance(figures, dict):
        return False
    return bool({"median_ms", "us", "wall_us", "skipped"} & set(figures)) or any(
        map(_measured, figures.values())
    )


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected."""
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


def weight_gib(module: torch.nn.Module) -> float:
    """Parameters and buffers in GiB."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.nbytes for tensor in tensors) / 2**30


def _wall(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return (time.perf_counter() - began) * 1e3
