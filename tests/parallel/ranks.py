"""What the ranks of the process tests run: importable, since fresh processes have to find it."""

import os
import signal
import time
import warnings
from collections.abc import Iterator

import torch

from fewer.core.errors import ConfigError
from fewer.generate.transformer.params import SanaParams
from fewer.generate.transformer.sana import SanaTransformer
from fewer.parallel import process_group
from fewer.parallel.attach import parallelize
from fewer.parallel.group import Group
from fewer.parallel.plan import ParallelPlan


def small_sana(seed: int = 0) -> SanaTransformer:
    torch.manual_seed(seed)
    params = SanaParams(
        in_channels=4, out_channels=4, heads=2, head_dim=16, depth=2, cross_heads=2, cross_head_dim=16,
        caption_channels=8, sample_size=8,
    )  # fmt: skip
    return SanaTransformer(params).eval()


def steps_of(model: SanaTransformer) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 7, 5, generator=generator)
    text = torch.randn(2, 3, 8, generator=generator)
    with torch.no_grad():
        for time_ in (900.0, 500.0, 100.0):
            latents = latents - 0.1 * model(latents, torch.full((2,), time_), text)
    return latents


def collectives(group: Group) -> list:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what torch is about to drop
        group.traffic.clear()  # of calls before
        return _collectives(group)


def _collectives(group: Group) -> list:
    own = torch.arange(3.0) + 10 * group.rank
    before, after = group.start_neighbours(own[:1], own[-1:]).wait()
    part = torch.full((2, group.rank + 1), float(group.rank))
    lengths = [rank + 1 for rank in range(group.size)]
    return [
        group.start_sum(own).wait().tolist(),
        None if before is None else before.item(),
        None if after is None else after.item(),
        group.start_gather(part, lengths, 1).wait()[0].tolist(),
        group.gather_object(group.rank),
        group.traffic.collectives,
    ]


def parts_of_parts(group: Group) -> list[float]:
    """Ranks that have made different numbers of groups before they make one together."""
    sums = []
    part = group.split([[0, 1], [2]])
    if part.size == 2:
        alone = part.split([[0], [1]])
        sums.append(alone.start_sum(torch.ones(1)).wait().item())
        sums.append(part.start_sum(torch.ones(1)).wait().item())
    sums.append(group.split([[0, 2], [1]]).start_sum(torch.full((1,), 1.0 + group.rank)).wait().item())
    return [value for values in group.gather_object(sums) for value in values]  # type: ignore[attr-defined]


def denoise(group: Group, mode: str, guidance: str) -> tuple[list, bool]:
    plan = ParallelPlan(devices=group.size, mode=mode, guidance=guidance, warmup_steps=0)  # type: ignore[arg-type]
    result = steps_of(parallelize(small_sana(), plan, group))
    everyone = group.gather_object(result.tolist())
    return result.tolist(), all(other == everyone[0] for other in everyone)


def different_weights(group: Group) -> None:
    parallelize(small_sana(seed=group.rank), ParallelPlan(devices=group.size, mode="sync"), group)


def different_plans(group: Group) -> None:
    parallelize(small_sana(), ParallelPlan(devices=group.size, warmup_steps=group.rank), group)


def die(group: Group, victim: int) -> None:
    if group.rank == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    group.start_sum(torch.ones(1)).wait()


def hang(group: Group) -> None:
    if group.rank == 1:
        time.sleep(600)
    group.start_sum(torch.ones(1)).wait()


def refuse(group: Group) -> None:
    raise ConfigError("not with me")


def meetings(group: Group) -> list[str]:
    """Ranks 0 and 1 meet as a pair; afterwards the three cannot meet, and all of them notice."""
    said = []
    process_group.OneShotSums = lambda handle, device: None  # type: ignore[assignment, misc]
    cpu = torch.device("cpu")
    pair = group.split([[0, 1], [2]])
    for part in (group, pair, group):
        if part.size > 1:
            try:
                part.use_one_shot(cpu)  # type: ignore[attr-defined]
                said.append("met")
            except RuntimeError as error:
                said.append(str(error)[:36])
    everyone = group.gather_object(said)
    return [str(one) for one in everyone]


def steps(group: Group, count: int, victim: int = -1) -> Iterator[tuple[int, float]]:
    """A step is a number and a sum over the ranks; the victim dies in the third."""
    for step in range(count):
        if step == 2 and group.rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        yield step, group.start_sum(torch.ones(1)).wait().item()


def count_calls(group: Group) -> int:
    kept = group.kept  # type: ignore[attr-defined]
    kept["calls"] = kept.get("calls", 0) + 1
    group.start_sum(torch.ones(1)).wait()
    return kept["calls"]
