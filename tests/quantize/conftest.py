import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "quantize_layers.py"


@pytest.fixture(scope="session")
def bench() -> ModuleType:
    """The benchmark's own recipe and measurement, so that test and benchmark cannot drift apart."""
    spec = importlib.util.spec_from_file_location("quantize_layers", BENCHMARK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TinyBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.o_proj, self.up, self.down = (
            nn.Linear(dim, dim),
            nn.Linear(dim, 2 * dim),
            nn.Linear(2 * dim, dim),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attention = torch.nn.functional.scaled_dot_product_attention(
            self.q_proj(x), self.k_proj(x), self.v_proj(x)
        )
        x = x + self.o_proj(attention)
        return x + self.down(torch.nn.functional.gelu(self.up(x)))


class TinyModel(nn.Module):
    """A decoder-like stack with an embedding, repeated blocks and a head."""

    def __init__(self, dim: int = 64, blocks: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(16, dim)
        self.blocks = nn.ModuleList(TinyBlock(dim) for _ in range(blocks))
        self.head = nn.Linear(dim, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture
def tiny() -> tuple[TinyModel, torch.Tensor]:
    torch.manual_seed(0)
    return TinyModel(), torch.randn(4, 25, 16)


@pytest.fixture
def relative() -> Callable[[torch.Tensor, torch.Tensor], float]:
    return lambda found, exact: ((found - exact).norm() / exact.norm()).item()
