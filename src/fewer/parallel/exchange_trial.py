"""Do exchanges inside kernels give what collectives give, on these GPUs? Asked before they are used."""

import statistics
import time

import torch
from torch import Tensor

from fewer.kernels.depthwise import depthwise_gated
from fewer.kernels.linear_attention import linear_attention_apply, linear_attention_state
from fewer.parallel.group import Group, GroupFailed
from fewer.parallel.peer_exchange import PeerExchange

PATIENCE = 30.0
"""Seconds after which a kernel that waits for its peers has waited in vain; compiling is behind it then."""
TOKENS_A_ROW, ROWS = 32, 16


class ExchangeTrial:
    """Attention and depthwise convolution on a band of random numbers, both ways."""

    def __init__(self, group: Group, device: torch.device, heads: int, dim: int, wide: int) -> None:
        self.group, self.device = group, device
        self.generator = torch.Generator(device).manual_seed(group.rank)
        self.heads, self.dim, self.wide = heads, dim, wide
        self.weight, self.bias = (
            torch.ones(shape, device=device, dtype=torch.bfloat16) for shape in ((wide, 3, 3), (wide,))
        )
        self.weight *= torch.arange(1, 10, device=device).view(3, 3) / 9

    def error(self, exchange: PeerExchange, turn: int) -> float:
        """The larger relative error of the two exchanges, on fresh numbers."""
        inputs = self.draw()
        found = self.layer(exchange, inputs, turn)
        self._wait_a_while()
        expected = self.layer(None, inputs, turn)
        return max(
            float((one.float() - other.float()).norm() / other.float().norm())
            for one, other in zip(found, expected, strict=True)
        )

    def draw(self) -> tuple[Tensor, Tensor]:
        """Queries, keys and values of the band, and its features."""
        shape = (1, TOKENS_A_ROW * ROWS, 3, self.heads, self.dim)
        joint, features = (
            torch.randn(size, generator=self.generator, device=self.device).bfloat16()
            for size in (shape, (1, ROWS, TOKENS_A_ROW, self.wide))
        )
        return joint, features

    def layer(
        self, exchange: PeerExchange | None, inputs: tuple[Tensor, Tensor], turn: int
    ) -> tuple[Tensor, Tensor]:
        """Both exchanges of a layer: inside kernels, or as collectives."""
        (query, key, value), features = inputs[0].unbind(2), inputs[1]
        if exchange is not None:
            attended = exchange.attend(query, key, value, query.shape[1], turn)
            return attended, exchange.depthwise(features, self.weight, self.bias, turn)
        state = self.group.start_sum(linear_attention_state(key, value)).wait()
        rows = self.group.start_neighbours(features[:, :1], features[:, -1:])
        before, after = rows.wait()
        parts = [part for part in (before, features, after) if part is not None]
        mixed = depthwise_gated(torch.cat(parts, dim=1), self.weight, self.bias)
        own = mixed.narrow(1, 0 if before is None else 1, ROWS)
        return linear_attention_apply(query, state), own

    def seconds(self, exchange: PeerExchange | None, repeats: int = 12) -> float:
        """Of a layer, median, launched one after another."""
        inputs, times = self.draw(), []
        for _ in range(repeats):
            torch.cuda.synchronize(self.device)
            began = time.perf_counter()
            for turn in (0, 1) * 5:
                self.layer(exchange, inputs, turn)
            torch.cuda.synchronize(self.device)
            times.append((time.perf_counter() - began) / 10)
        return statistics.median(times)

    def _wait_a_while(self) -> None:
        event = torch.cuda.Event()
        event.record()
        deadline = time.monotonic() + PATIENCE
        while not event.query():
            if time.monotonic() > deadline:
                raise GroupFailed(f"rank {self.group.rank}: a kernel waited {PATIENCE:.0f} s for its peers")
            time.sleep(0.002)
