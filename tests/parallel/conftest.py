"""A small random Sana with non-zero biases, as the acceptance of the method asks for; ranks that stay."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from fewer.generate.transformer.params import SanaParams
from fewer.generate.transformer.sana import SanaTransformer
from fewer.parallel.launch import RankPool


def randomise(module: torch.nn.Module, seed: int = 0, size: float = 0.3) -> torch.nn.Module:
    generator = np.random.Generator(np.random.PCG64(seed))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.from_numpy(generator.standard_normal(tuple(parameter.shape)))
            fan = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.copy_(values * (size if parameter.ndim == 1 else 1.0 / fan**0.5))
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return module


@pytest.fixture
def toy() -> SanaTransformer:
    params = SanaParams(
        in_channels=4, out_channels=4, heads=2, head_dim=32, depth=4, cross_heads=2, cross_head_dim=32,
        caption_channels=24, sample_size=16,
    )  # fmt: skip
    model = SanaTransformer(params).eval()
    randomise(model)
    return model


@pytest.fixture(scope="session")
def pair() -> Iterator[RankPool]:
    """Two processes for many tests, since each takes seconds to start; anew where a test ends them."""
    with RankPool(2) as pool:
        yield pool


@pytest.fixture(scope="session")
def trio() -> Iterator[RankPool]:
    with RankPool(3) as pool:
        yield pool
