"""What each phase trains: the sets of the specification, nothing else, frozen layers in eval mode."""

import pytest
import torch

from fewer.generate.autoencoder import DCAutoencoder
from fewer.generate.autoencoder.phases import prepare
from tests.generate.autoencoder.conftest import tiny_config


def trained(model: DCAutoencoder, phase: int, depth: int) -> set[str]:
    prepare(model, phase, depth)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {".".join(name.split(".")[: 3 if "blocks" in name else 2]) for name in names}


@pytest.mark.parametrize(
    ("phase", "depth", "expected"),
    [
        (2, 0, {"encoder.conv_out", "decoder.conv_in"}),
        (2, 1, {"encoder.conv_out", "decoder.conv_in", "encoder.down_blocks.2", "decoder.up_blocks.2"}),
        (3, 0, {"decoder.norm_out", "decoder.conv_out"}),
        (3, 1, {"decoder.norm_out", "decoder.conv_out", "decoder.up_blocks.1"}),
    ],
)
def test_sets(phase: int, depth: int, expected: set[str]) -> None:
    # Its decoder has no blocks in stage 0, so the first stage with blocks is 1.
    assert trained(DCAutoencoder(tiny_config("no_latent_shortcuts")), phase, depth) == expected


def test_phase_one_trains_everything() -> None:
    model = DCAutoencoder(tiny_config("batch_norm_attention"))
    assert sum(p.numel() for p in prepare(model, 1, 0)) == sum(p.numel() for p in model.parameters())
    assert model.training


def test_frozen_batch_norm_does_not_move() -> None:
    model = DCAutoencoder(tiny_config("batch_norm_attention"))
    prepare(model, 2, 1)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(torch.rand(2, 1, 8, 8))
    moved = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
    assert moved and all(name.startswith("decoder.up_blocks.2.") for name in moved)
