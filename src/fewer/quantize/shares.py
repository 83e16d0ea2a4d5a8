"""How coarse each row of each weight may be, so that a package of a given size draws best.

A row whose numbers are multiples of `step` gets about step^2 / 12 of noise on each, or `kept` times that
after error feedback, and takes about log2(deviation / step) + 2 bits a number. Where the slopes of both are
equal (reverse water-filling; Cover and Thomas, Elements of Information Theory, section 10.3) every row adds
the same to the network's squared error: what matters more is stored more finely.
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor

LARGEST = 127
COARSEST = 1.5  # steps in deviations of a row: Huffman codes never fall below one bit
LEVELS = 4  # a weight that wants this many times more levels than a byte has stays in 16 bits
EVEN = 0.1  # share of the layer's mean in what a row matters: few pictures were looked at
BLOCK, TABLE_BITS = 2**15, 5  # of zlib: codes between two tables, and what a table takes of each symbol in it
_HALVINGS, _NEAR = 60, 1.002


@dataclass(frozen=True, slots=True)
class Rows:
    """A weight's rows, and what a unit of squared step on each costs the network's output."""

    rows: Float[Tensor, "rows columns"]
    cost: Float[Tensor, "rows"]

    def steps(self, slope: float) -> Float[Tensor, "rows"]:
        """The step of every row at this slope, a number of bf16, within what bytes and codes can hold."""
        cost = (1 - EVEN) * self.cost + EVEN * self.cost.mean()
        coarsest = COARSEST * self.rows.square().mean(dim=1).sqrt()
        # one more part in 128, that rounding to bf16 makes no row overflow its codes
        finest = self.rows.abs().amax(dim=1) / LARGEST * (1 + 2**-7)
        wanted = slope / cost.clamp_min(1e-30).sqrt()
        return wanted.minimum(coarsest).maximum(finest).clamp_min(1e-12).bfloat16().float()

    def too_fine(self, slope: float) -> bool:
        """Whether a byte is far from enough."""
        wanted = slope / self.cost.mean().clamp_min(1e-30).sqrt()
        return bool(self.rows.abs().amax() > LARGEST * LEVELS * wanted)

    def bits(self, slope: float) -> int:
        """What the rows take at this slope when they are plainly rounded."""
        if self.too_fine(slope):
            return 16 * self.rows.numel()
        return huffman_bits(whole_numbers(self.rows, self.steps(slope)[:, None])) + 16 * len(self.rows)


def whole_numbers(rows: Float[Tensor, "*shape"], steps: Float[Tensor, "*steps"]) -> Int8[Tensor, "*shape"]:
    """The nearest multiples of `steps`, as int8."""
    return (rows / steps).round_().clamp_(-LARGEST, LARGEST).to(torch.int8)


def huffman_bits(codes: Int8[Tensor, "*shape"]) -> int:
    """About what whole numbers take in Huffman codes, a table for every 2^15 of them included."""
    counts = torch.bincount(codes.flatten().int() + 128, minlength=256).tolist()
    heap = sorted(count for count in counts if count)
    symbols, total = len(heap), max(heap) if len(heap) == 1 else 0
    while len(heap) > 1:  # every merge of the two rarest makes the codes below it one bit longer
        pair = heapq.heappop(heap) + heapq.heappop(heap)
        total += pair
        heapq.heappush(heap, pair)
    return total + (1 + codes.numel() // BLOCK) * TABLE_BITS * (symbols + 1)


def slope_for(weights: Mapping[str, Rows], budget: float) -> float:
    """The least slope, about, with which plainly rounded weights take at most `budget` bits together."""
    low, high = 1e-12, 1e12
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        if sum(weight.bits(middle) for weight in weights.values()) > budget:
            low = middle
        else:
            high = middle
        if high / low < _NEAR:
            break
    return high
