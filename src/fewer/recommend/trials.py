"""Lengths that the search cannot tell apart are trained side by side for a few epochs; the best goes on.

Every trial is the beginning of the very training that the length would get (same seed, same batches), so the
winner's checkpoint is where its training continues. After every round the worse half leaves (successive
halving, Jamieson and Talwalkar 2016). A longer length pays its price here too.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from fewer.core.device import isolated_randomness
from fewer.core.progress import Progress, SilentProgress
from fewer.recommend.automlp import AutoMLPNetwork, AutoMLPShape
from fewer.recommend.data.features import ItemFeatures
from fewer.recommend.data.splits import Split
from fewer.recommend.search import SearchResult
from fewer.recommend.training.loop import TrainingPlan, TrainingResult, train_network

ROUNDS = (6, 12)  # epochs after which lengths leave


@dataclass(slots=True)
class Trials:
    """The winner, what every length reached, and what it took."""

    length: int
    reached: list[dict[str, object]] = field(default_factory=list)
    """Per length: `length`, `epochs`, `ndcg_at_10` (best on validation)."""
    seconds: float = 0.0
    cpu_seconds: float = 0.0


def settle(
    found: SearchResult,
    shape: AutoMLPShape,
    split: Split,
    plan: TrainingPlan,
    finalists: int,
    **options: object,
) -> None:
    """Lets the first `finalists` rivals of a search compete and notes the winner and the time in `found`."""
    rivals = [found.candidates[index] for index in found.rivals[:finalists]]
    if len(rivals) < 2:
        found.length = rivals[0] if rivals and finalists > 1 else found.length
        return
    trials = try_lengths(shape, split, plan, rivals, price=found.price, **options)  # pyright: ignore
    found.length, found.trials = trials.length, trials.reached
    found.seconds += trials.seconds
    found.cpu_seconds += trials.cpu_seconds


def try_lengths(
    shape: AutoMLPShape,
    split: Split,
    plan: TrainingPlan,
    lengths: Sequence[int],
    *,
    price: float = 0.0,
    rounds: Sequence[int] = ROUNDS,
    features: ItemFeatures | None = None,
    device: torch.device | None = None,
    progress: Progress | None = None,
    folder: Path | None = None,
) -> Trials:
    """The length that leads after the last round; of equals the shorter one.

    `price` is taken from the figure of the longest candidate of `shape`, shorter ones pay their share. With
    `folder` the checkpoints stay under `folder/<length>`; called again, a trial goes on from there.
    """
    if folder is None:
        with TemporaryDirectory() as scratch:
            return try_lengths(
                shape, split, plan, lengths, price=price, rounds=rounds, features=features, device=device,
                progress=progress, folder=Path(scratch),
            )  # fmt: skip
    began, cpu = time.monotonic(), time.process_time()
    progress = progress or SilentProgress()
    results: dict[int, TrainingResult] = {}
    alive = sorted(set(lengths))

    def paid(length: int) -> float:
        return results[length].best_ndcg - price * length / max(shape.candidates)

    for epochs in rounds:
        if len(alive) == 1:
            break
        progress.say(f"lengths {', '.join(map(str, alive))} are close: each is trained for {epochs} epochs")
        for length in alive:
            with isolated_randomness(plan.seed):
                network = AutoMLPNetwork(replace(shape, candidates=(length,)), features)
            results[length] = train_network(
                network.to(device or torch.device("cpu")),
                split,
                replace(plan, epochs=min(epochs, plan.epochs)),
                length=shape.length,
                folder=folder / str(length),
                resume=True,
                progress=progress,
            )
        keep = 1 if epochs == rounds[-1] else -(-len(alive) // 2)
        alive = sorted(sorted(alive, key=lambda length: (-paid(length), length))[:keep])
    reached = [
        {"length": length, "epochs": len(result.path), "ndcg_at_10": result.best_ndcg}
        for length, result in results.items()
    ]
    return Trials(
        length=alive[0], reached=reached,
        seconds=time.monotonic() - began, cpu_seconds=time.process_time() - cpu,
    )  # fmt: skip
