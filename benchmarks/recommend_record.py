"""What the recommendation benchmarks share: the data, the machine's description, and where results go."""

import json
import os
import platform
from pathlib import Path

import torch

from fewer.recommend.data.interactions import Interactions
from fewer.recommend.data.reading import read_interactions

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, object]:
    """Processor, cores, load and versions; a busy machine is part of the result."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def record(name: str, result: dict[str, object], folder: Path = RESULTS) -> None:
    """Writes results/<name>.json and prints it."""
    folder.mkdir(exist_ok=True, parents=True)
    text = json.dumps({**result, "machine": machine()}, indent=1)
    (folder / f"{name}.json").write_text(text + "\n")
    print(text)


def recorded(name: str, folder: Path = RESULTS) -> dict:
    """An earlier result, so that a benchmark can go on where it was stopped."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def interactions(name: str, path: Path | None) -> Interactions:
    """`games-core`, `games`, or `ml-100k` from the user's own copy of ml-100k.inter."""
    if name == "ml-100k":
        if path is None:
            raise SystemExit(
                "ml-100k may not be shipped: give --path .../ml-100k.inter (RecBole's wheel carries it)"
            )
        return read_interactions(path)
    games = read_interactions(ROOT / "data" / "amazon-video-games" / "video_games.txt.gz")
    return games.core(8, 10) if name == "games-core" else games


def peak_mebibytes() -> float:
    """Highest resident memory of this process so far (VmHWM; ru_maxrss would inherit the parent's)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return float("nan")
