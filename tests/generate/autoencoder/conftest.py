"""Tiny autoencoders of every kind, with every parameter away from its initial value."""

import pytest
import torch
from torch import nn

from fewer.generate.autoencoder import DCAutoencoder, DCAutoencoderConfig

TINY: dict[str, dict] = {
    "multi_head_multi_scale": {
        "encoder_block_types": ("ResBlock", "EfficientViTBlock", "EfficientViTBlock"),
        "decoder_block_types": ("ResBlock", "EfficientViTBlock", "EfficientViTBlock"),
        "encoder_qkv_multiscales": ((), (5,), (3, 5)),
        "decoder_qkv_multiscales": ((), (), (5,)),
        "downsample_block_type": "conv",
        "upsample_block_type": "interpolate",
    },
    "batch_norm_empty_first": {
        "encoder_layers_per_block": (0, 2, 1),
        "decoder_layers_per_block": (0, 1, 2),
        "decoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
        "encoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
        "decoder_norm_types": ("batch_norm", "batch_norm", "rms_norm"),
        "decoder_act_fns": ("relu", "relu", "silu"),
    },
    "no_latent_shortcuts": {
        "encoder_out_shortcut": False,
        "decoder_in_shortcut": False,
        "decoder_conv_act_fn": "silu",
        "encoder_layers_per_block": (1, 1, 1),
        "decoder_layers_per_block": (0, 1, 1),
    },
    "batch_norm_attention": {
        "decoder_block_types": "EfficientViTBlock",
        "decoder_norm_types": "batch_norm",
        "decoder_act_fns": "relu",
        "in_channels": 1,
        "decoder_qkv_multiscales": ((3,), (5,), ()),
        "upsample_block_type": "interpolate",
    },
}


def tiny_config(name: str, **changes: object) -> DCAutoencoderConfig:
    base: dict = {
        "latent_channels": 4,
        "attention_head_dim": 8,
        "encoder_block_out_channels": (8, 16, 32),
        "decoder_block_out_channels": (8, 16, 32),
        "encoder_layers_per_block": (1, 2, 1),
        "decoder_layers_per_block": (1, 1, 2),
        "encoder_qkv_multiscales": ((), (), ()),
        "decoder_qkv_multiscales": ((), (), ()),
    }
    return DCAutoencoderConfig(**{**base, **TINY[name], **changes})


def perturb(model: nn.Module, seed: int = 0) -> None:
    """Moves every parameter and buffer, so that none hides behind its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            elif tensor.ndim == 1:
                tensor.copy_(0.3 * noise + float("norm" in name and name.endswith("weight")))
            else:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)


@pytest.fixture(params=sorted(TINY))
def tiny_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tiny(tiny_name: str) -> DCAutoencoder:
    model = DCAutoencoder(tiny_config(tiny_name))
    perturb(model)
    return model.eval()
