"""Sampling what layers read while the user's function runs the model: bounded memory, any amount of data.

Each layer keeps the largest magnitude of every channel over all rows and a uniform sample of rows (a
reservoir whose chances are drawn in lottery.py). If the samples of all layers do not fit the
budget, the calibration runs in several passes, each for some of the layers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewer.core.device import seeded
from fewer.core.errors import DataError
from fewer.quantize.lottery import Lottery, lottery
from fewer.quantize.parts import Samples
from fewer.quantize.recipe import Recipe
from fewer.quantize.roles import Group

ENOUGH_ROWS = 512  # below this another pass over the calibration data is better than a smaller sample
BLOCK_CALLS = 2  # calls of an attention block that are kept for the search's whole-block comparison
WORKING_BYTES = 29 * 2**20  # of the memory for samples: copies of inputs and of pieces of a layer at work
BLOCK_SHARE = 4  # blocks' calls may take a quarter of the memory for samples


class Reservoir:
    """A uniform sample of the rows of one layer's input, and the peak of each channel."""

    def __init__(self, name: str, chances: Lottery) -> None:
        self.name, self.chances = name, chances
        self.rows: Tensor | None = None
        self.peak: Tensor | None = None

    def add(self, inputs: Float[Tensor, "rows dim"]) -> None:
        """Takes part of `inputs`. Raises `DataError` naming the layer for NaN or Inf.

        On a GPU they are found at the end, by `samples`: asking at every call would wait for the model.
        """
        if not len(inputs):
            return
        peak = torch.linalg.vector_norm(inputs, ord=torch.inf, dim=0).float()
        self.peak = peak if self.peak is None else torch.maximum(self.peak, peak)
        if not inputs.is_cuda:
            self._check()
        self.chances = self.chances.after(len(inputs))
        if self.rows is None:
            self.rows = inputs.new_empty(len(self.chances.numbers), inputs.shape[1])
        places, rows = (
            chosen.to(inputs.device, non_blocking=True) for chosen in (self.chances.places, self.chances.rows)
        )
        self.rows[places] = inputs[rows].to(self.rows.dtype)  # under autocast calls may differ

    def samples(self) -> Samples | None:
        """What was kept, in random order, and forgotten here; None if the layer never ran."""
        if self.rows is None or self.peak is None:
            return None
        self._check()
        rows, self.rows = self.rows[self.chances.order().to(self.rows.device)], None
        return Samples(rows, self.peak)

    def _check(self) -> None:
        if self.peak is not None and not torch.isfinite(self.peak).all():
            raise DataError(f"the calibration inputs of layer {self.name!r} have NaN or Inf; check the data")


@dataclass(slots=True)
class BlockCall:
    """One recorded call of an attention block: what went in and what came out."""

    positional: tuple[object, ...]
    named: dict[str, object]
    output: Tensor


@dataclass(slots=True)
class Observations:
    """What one pass saw: samples by layer and calls by block."""

    samples: dict[str, Samples | None]
    calls: dict[str, list[BlockCall]]


def observe(
    module: nn.Module,
    groups: list[Group],
    calibrate: Callable[[], object],
    recipe: Recipe,
    rows: int,
    budget: int,
) -> Observations:
    """Runs `calibrate()` once and samples the input of the first layer of every part of `groups`.

    `calibrate` must call `module` in some way; what it returns is ignored. Gradients are off.
    """
    sources = {part[0] for group in groups for part in group.parts}
    blocks = {group.block for group in groups if group.block and recipe.evaluate == "block"}
    reservoirs = _reservoirs(sources, rows, recipe.seed)
    calls: dict[str, list[BlockCall]] = {name: [] for name in blocks}
    with _hooks(module, reservoirs, calls, budget), torch.no_grad():
        calibrate()
    return Observations({name: reservoir.samples() for name, reservoir in reservoirs.items()}, calls)


def _reservoirs(names: set[str], rows: int, seed: int) -> dict[str, Reservoir]:
    """One for each layer; all begin with the same lottery, which nothing else may keep alive."""
    chances = lottery(rows, seeded(seed, 3))
    return {name: Reservoir(name, chances) for name in names}


def plan_passes(
    groups: list[Group], widths: dict[str, int], recipe: Recipe, itemsize: int
) -> tuple[list[list[Group]], int]:
    """Splits groups into passes whose samples fit the budget, and the rows each layer may keep.

    Later groups come first: their samples are taken before any earlier layer could be changed.
    """
    budget = recipe.sample_mebibytes * 2**20
    if recipe.evaluate == "block" and any(group.block for group in groups):
        budget -= budget // BLOCK_SHARE
    budget -= min(budget // 2, WORKING_BYTES)
    sizes = [sum(widths[part[0]] for part in group.parts) * itemsize for group in groups]
    affordable = budget // max(1, sum(sizes))
    if affordable >= min(recipe.rows, ENOUGH_ROWS):
        return [list(groups)], min(recipe.rows, affordable)
    rows = min(recipe.rows, ENOUGH_ROWS)
    passes: list[list[Group]] = [[]]
    used = 0
    for group, size in zip(reversed(groups), reversed(sizes), strict=True):
        if passes[-1] and used + size * rows > budget:
            passes.append([])
            used = 0
        passes[-1].append(group)
        used += size * rows
    return passes, rows


@contextmanager
def _hooks(
    module: nn.Module, reservoirs: dict[str, Reservoir], calls: dict[str, list[BlockCall]], budget: int
) -> Iterator[None]:
    handles = []
    used = [0]

    def sampler(reservoir: Reservoir, channels_first: bool) -> Callable[..., None]:
        def hook(_: nn.Module, positional: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
            inputs = positional[0] if positional else next(iter(named.values()))
            moved = inputs.movedim(-3, -1) if channels_first else inputs
            reservoir.add(moved.detach().reshape(-1, moved.shape[-1]))

        return hook

    def recorder(name: str) -> Callable[..., None]:
        def hook(
            _: nn.Module, positional: tuple[object, ...], named: dict[str, object], output: object
        ) -> None:
            result = output[0] if isinstance(output, (tuple, list)) else output
            if len(calls[name]) >= BLOCK_CALLS or not isinstance(result, Tensor):
                return
            size = _bytes((positional, named, result))
            if used[0] + size <= budget:
                used[0] += size
                calls[name].append(BlockCall(_detach(positional), _detach(named), result.detach().clone()))  # pyright: ignore

        return hook

    try:
        for name, reservoir in reservoirs.items():
            child = module.get_submodule(name)
            hook = sampler(reservoir, isinstance(child, nn.Conv2d))
            handles.append(child.register_forward_pre_hook(hook, with_kwargs=True))
        handles += [
            module.get_submodule(name).register_forward_hook(recorder(name), with_kwargs=True)
            for name in calls
        ]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _bytes(value: object) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, (tuple, list)) else 0


def _detach(value: object) -> object:
    """The same structure with its tensors copied, so that later in-place changes do not reach the record."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _detach(item) for key, item in value.items()}
    return type(value)(map(_detach, value)) if type(value) in (tuple, list) else value
