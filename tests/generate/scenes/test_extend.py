from dataclasses import replace

import torch

from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.scenes.compose import SceneRenderer
from fewer.generate.scenes.extend import train_extension
from fewer.generate.scenes.presets import preset
from fewer.generate.scenes.table import draw_table


def test_the_new_stage_learns_and_the_old_autoencoder_stays(sheet, vocabulary) -> None:
    chosen = preset("emoji-test")
    torch.manual_seed(0)
    base = DCAutoencoder(chosen.autoencoder).eval()
    before = [value.clone() for value in base.parameters()]
    training = replace(chosen.autoencoder_training, steps=30, batch=4, crop=32, learning_rate=5e-3)
    table = draw_table(vocabulary, 16, "train", 0)
    larger, result = train_extension(base, SceneRenderer(sheet, 64), table, training, width=8)
    assert result.step == 30
    assert sum(result.losses[-5:]) < 0.8 * sum(result.losses[:5])
    assert all(torch.equal(one, other) for one, other in zip(before, base.parameters(), strict=True))
    assert larger.config.spatial_compression_ratio == 2 * base.config.spatial_compression_ratio
    assert not any(parameter.requires_grad for parameter in larger.parameters())
