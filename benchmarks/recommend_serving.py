"""Top 10 of 1,000,000 items for one user: exact, through a scan of codes, and through a graph. runs on: cpu

Random unit vectors (the hardest case) and vectors in 2,000 clusters. `wall` is what a user waits on this
machine, `cpu` the processor time of the same call (the two differ on a busy machine).
"""
# bench: cpu, 5 min: --no-graph --threads 1

import argparse
import statistics
import time
from dataclasses import asdict
from pathlib import Path

import torch
from recommend_record import RESULTS, peak_mebibytes, record, recorded

from fewer.recommend.serving.index import ExactIndex, GraphIndex, GraphPlan, ItemIndex, recall
from fewer.recommend.serving.scan import ScanIndex, ScanPlan


def make_vectors(kind: str, items: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(item vectors, 50 queries), all of unit length."""
    generator = torch.Generator().manual_seed(0)
    if kind == "random":
        table, asked = torch.randn(items, 64, generator=generator), torch.randn(50, 64, generator=generator)
    else:  # 2,000 groups of similar items; a query is near an item
        centres = torch.randn(2000, 64, generator=generator)
        table = centres[torch.randint(0, 2000, (items,), generator=generator)]
        table = table + 0.5 * torch.randn(items, 64, generator=generator)
        asked = table[:50] + 0.3 * torch.randn(50, 64, generator=generator)
    return torch.nn.functional.normalize(table), torch.nn.functional.normalize(asked)


def timed(index: ItemIndex, asked: torch.Tensor) -> tuple[dict[str, float], torch.Tensor]:
    """Milliseconds per query (median), one query at a time, and what was found."""
    wall, cpu, found = [], [], []
    for query in asked.split(1):
        began, began_cpu = time.perf_counter(), time.process_time()
        _, places = index.search(query, 10)
        wall.append(1e3 * (time.perf_counter() - began))
        cpu.append(1e3 * (time.process_time() - began_cpu))
        found.append(places)
    return {
        "wall_p50": statistics.median(wall),
        "wall_min": min(wall),
        "cpu_p50": statistics.median(cpu),
    }, torch.cat(found)


def scanned(table: torch.Tensor, asked: torch.Tensor, truth: torch.Tensor, reranks: list[int]) -> dict:
    """The scan with one thread, for several numbers of exactly ranked candidates."""
    began = time.process_time()
    index = ScanIndex(table)
    entry: dict[str, object] = {"scan_build_cpu_seconds": time.process_time() - began}
    for rerank in reranks:
        index.plan = ScanPlan(rerank=rerank)
        times, found = timed(index, asked)
        entry[f"scan, rerank {rerank}"] = {**times, "recall_at_10": recall(found, truth)}
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--kinds", nargs="+", default=["random", "clustered"])
    parser.add_argument("--graph", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--scan", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--rerank", type=int, nargs="+", default=[100, 200, 500, 1000])
    parser.add_argument("--neighbours", type=int, default=16)
    parser.add_argument("--build-width", type=int, default=100)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048])
    parser.add_argument(
        "--threads", type=int, default=1, help="of the exact search; the indexes answer with one"
    )
    parser.add_argument("--build-threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    results: dict[str, dict] = recorded("recommend_serving", given.results).get("results", {})

    def save() -> None:
        facts = {"results": results, "threads": given.threads, "peak_mebibytes": peak_mebibytes()}
        record("recommend_serving", facts, given.results)

    for kind in given.kinds:
        table, asked = make_vectors(kind, given.items)
        exact, truth = timed(ExactIndex(table), asked)
        entry = results.setdefault(f"{kind} {given.items}", {})
        entry["exact"] = exact
        save()
        if given.scan:
            entry.update(scanned(table, asked, truth, given.rerank))
            save()
        if not given.graph:
            continue
        began = time.process_time()
        plan = GraphPlan(
            neighbours=given.neighbours, build_width=given.build_width, threads=given.build_threads
        )
        graph = GraphIndex(table, plan)
        entry["graph_build"] = {**asdict(plan), "cpu_seconds": time.process_time() - began}
        for width in given.widths:
            object.__setattr__(graph, "plan", GraphPlan(search_width=width))
            times, found = timed(graph, asked)
            entry[f"graph, width {width}"] = {**times, "recall_at_10": recall(found, truth)}
            save()


if __name__ == "__main__":
    main()
