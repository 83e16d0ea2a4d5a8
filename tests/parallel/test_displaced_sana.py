"""Displaced bands of Sana against an emulation on the whole picture that shares no code with them.

One run of the untouched model on the whole picture stands for all ranks: its linear attention keeps every
band's sum apart and gives each band the sum that its rank would use, its convolution sees old border rows.
"""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad, relu, silu

from fewer.generate.transformer.sana import SanaTransformer
from fewer.parallel.plan import ParallelPlan
from tests.parallel.test_sana import error, on_ranks, sample

WIDTH = 8


@dataclass
class Emulation:
    """Takes the place of a model's two mixing layers; `gain` is how far the own change is believed in."""

    model: SanaTransformer
    bands: list[tuple[int, int]]
    exact_steps: int
    gain: tuple[float, ...]
    fresh_rows: bool
    step: int = -1
    sums: dict[int, Tensor] = field(default_factory=dict)
    hidden: dict[int, Tensor] = field(default_factory=dict)

    def __enter__(self) -> SanaTransformer:
        self.model.patch_embed.register_forward_pre_hook(lambda *_: setattr(self, "step", self.step + 1))
        for index, block in enumerate(self.model.transformer_blocks):
            block.attn1.forward = lambda tokens, i=index, a=block.attn1: self.attend(i, a, tokens)
            block.ff.forward = lambda tokens, grid, i=index, f=block.ff: self.mix(i, f, tokens, grid)
        return self.model

    def __exit__(self, *error: object) -> None:
        self.model.patch_embed._forward_pre_hooks.clear()
        for block in self.model.transformer_blocks:
            del block.attn1.forward, block.ff.forward

    def attend(self, index: int, layer, tokens: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(2, (layer.heads, -1)).transpose(1, 2)
            for part in (layer.to_q(tokens), layer.to_k(tokens), layer.to_v(tokens))
        )
        query, key, value = relu(query), relu(key), pad(value, (0, 1), value=1.0)
        places = [slice(first * WIDTH, last * WIDTH) for first, last in self.bands]
        sums = torch.stack([key[:, :, own].mT @ value[:, :, own] for own in places])
        read = []
        for own, place in enumerate(places):
            used = sums.sum(0)
            if self.step >= self.exact_steps:
                old = self.sums[index]
                moved = sums[own] - old[own]
                replaced, used = old.sum(0) + moved, old.sum(0) + self.gain[own] * moved
                used = torch.where(used[..., -1:] > 0, used, replaced)
            summed = query[:, :, place] @ used
            read.append(summed[..., :-1] / (summed[..., -1:] + 1e-15))
        self.sums[index] = sums
        return layer.to_out(torch.cat(read, 2).transpose(1, 2).flatten(2))

    def mix(self, index: int, layer, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        image = tokens.mT.unflatten(2, grid)
        hidden = silu(conv2d(image, layer.conv_inverted.weight, layer.conv_inverted.bias))
        stale = self.step >= self.exact_steps and not self.fresh_rows
        around = pad(self.hidden[index] if stale else hidden, (0, 0, 1, 1))
        parts = []
        for first, last in self.bands:
            seen = torch.cat(
                [
                    around[:, :, first : first + 1],
                    hidden[:, :, first:last],
                    around[:, :, last + 1 : last + 2],
                ],
                2,
            )
            parts.append(
                conv2d(
                    seen,
                    layer.conv_depth.weight,
                    layer.conv_depth.bias,
                    padding=(0, 1),
                    groups=hidden.shape[1],
                )
            )
        self.hidden[index] = hidden
        value, gate = torch.cat(parts, 2).chunk(2, 1)
        return conv2d(value * silu(gate), layer.conv_point.weight).flatten(2).mT


@pytest.mark.parametrize(
    ("bands", "rule", "halo"),
    [
        ([(0, 8), (8, 16)], "replace", "stale"),
        ([(0, 6), (6, 11), (11, 16)], "replace", "sync"),
        ([(0, 6), (6, 11), (11, 16)], "corrected", "stale"),
    ],
)
@torch.no_grad()
def test_displaced_steps_equal_the_emulation(
    bands: list[tuple[int, int]], rule: str, halo: str, toy: SanaTransformer
) -> None:
    exactly = sample(toy, steps=4)
    gain = tuple(16 / (last - first) if rule == "corrected" else 1.0 for first, last in bands)
    with Emulation(toy, bands, 2, gain, halo == "sync") as emulated:
        expected = sample(emulated, steps=4)
    plan = ParallelPlan(
        devices=len(bands),
        mode="displaced",
        warmup_steps=1,
        state_rule=rule,  # pyright: ignore[reportArgumentType]
        halo=halo,  # pyright: ignore[reportArgumentType]
    )
    found = on_ranks(toy, plan, steps=4)[0]
    stale = error(exactly, expected)
    assert stale > 1e-3
    assert error(found, expected) <= 1e-5
