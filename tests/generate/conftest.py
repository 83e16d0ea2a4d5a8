"""Small models with random weights, shared by the tests of this room."""

from collections.abc import Callable

import pytest
import torch

from fewer.generate.transformer import SanaParams, SanaTransformer, initialise

_TINY = {
    "in_channels": 4,
    "out_channels": 4,
    "heads": 2,
    "head_dim": 8,
    "depth": 2,
    "cross_heads": 2,
    "cross_head_dim": 8,
    "caption_channels": 12,
    "sample_size": 4,
}


@pytest.fixture
def tiny() -> Callable[..., SanaTransformer]:
    """Builds a tiny transformer with fixed random weights; keywords change its shape."""

    def build(**changes: object) -> SanaTransformer:
        model = SanaTransformer(SanaParams(**(_TINY | changes)))
        return initialise(model, torch.Generator().manual_seed(0), zero_output=False)

    return build
