"""Configs whose numbers do not fit together are refused with the numbers in the message."""

import pytest

from fewer.core.config import validate
from fewer.core.errors import ConfigError
from fewer.generate.autoencoder import DCAutoencoderConfig

from .conftest import tiny_config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder_block_out_channels": (8, 16)}, "entries for 2 stages"),
        ({"encoder_layers_per_block": (1, 0, 1)}, "only the first stage"),
        ({"encoder_layers_per_block": (1, 200, 1)}, "at most 128"),
        ({"encoder_block_out_channels": (8, 12, 32)}, "multiple of 12|multiple of 32"),
        ({"latent_channels": 5}, "into the latents"),
        ({"attention_head_dim": 64, "decoder_block_types": "EfficientViTBlock"}, "attention head of 64"),
        ({"encoder_qkv_multiscales": ((), (4,), ())}, "even kernel"),
        ({"latents_mean": (0.0,) * 4}, "go together"),
        ({"latents_mean": (0.0,) * 3, "latents_std": (1.0,) * 3}, "3 entries, not 4"),
        ({"latents_mean": (float("nan"),) * 4, "latents_std": (1.0,) * 4}, "not finite"),
        ({"latent_prefixes": (2, 8)}, "beyond 4"),
    ],
)
def test_numbers_that_do_not_fit(changes: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_config("no_latent_shortcuts", **{"encoder_out_shortcut": True, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"latent_channels": 0},
        {"scaling_factor": 0},
        {"scaling_factor": float("inf")},
        {"encoder_block_out_channels": (8, 16, 10**9)},
        {"encoder_layers_per_block": (1, 1, 10**9)},
        {"upsample_block_type": "bicubic"},
        {"decoder_norm_types": "layer_norm"},
        {"latents_mean": [0.0] * 4, "latents_std": [0.0] * 4},
    ],
)
def test_values_out_of_range_name_their_field(changes: dict) -> None:
    with pytest.raises(ConfigError, match=next(reversed(changes))):
        validate(DCAutoencoderConfig, changes)


def test_ratio_follows_from_the_stages() -> None:
    assert tiny_config("no_latent_shortcuts").spatial_compression_ratio == 4
    assert DCAutoencoderConfig().spatial_compression_ratio == 32
