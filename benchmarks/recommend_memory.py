"""Peak memory of building the training pairs of 1,000,000 interactions with histories of 50. runs on: cpu

The file is written, then read, split, shuffled into an epoch and walked through, in a process of its own.
"""
# bench: cpu, 1 min:

import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
from recommend_record import peak_mebibytes, record


def build(path: Path, answers: "multiprocessing.Queue[dict[str, float]]") -> None:
    import torch

    from fewer.recommend.data.prefixes import Prefixes
    from fewer.recommend.data.reading import read_interactions
    from fewer.recommend.data.splits import leave_last_out

    torch.set_num_threads(1)
    empty, began = peak_mebibytes(), time.process_time()
    split = leave_last_out(read_interactions(path))
    read_seconds, read_peak = time.process_time() - began, peak_mebibytes()
    prefixes = Prefixes(split, 50)
    pairs = 0
    for positions in prefixes.epoch(split.train, 1024, 0, 0):
        pairs += len(prefixes.gather(positions).targets)
    answers.put(
        {
            "pairs": pairs,
            "peak_mebibytes": peak_mebibytes(),
            "peak_mebibytes_after_reading": read_peak,
            "mebibytes_of_the_bare_process": empty,
            "read_cpu_seconds": read_seconds,
            "cpu_seconds": time.process_time() - began,
        }
    )


def main() -> None:
    rng = np.random.default_rng(0)
    count = 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        columns = rng.integers(0, 20_000, count), rng.zipf(1.3, count) % 50_000, rng.integers(0, 10**9, count)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        path.write_text("user,item,time\n" + "".join(f"user-{u},item-{i},{t}\n" for u, i, t in rows))
        context = multiprocessing.get_context("spawn")
        answers = context.Queue()
        process = context.Process(target=build, args=(path, answers))
        process.start()
        result = answers.get()
        process.join()
    record("recommend_memory", {"interactions": count, "length": 50, **result})


if __name__ == "__main__":
    main()
