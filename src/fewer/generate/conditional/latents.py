"""Labelled pictures as latents of a DC-AE, encoded once before training."""

from dataclasses import replace

import torch

from fewer.core.errors import ConfigError
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.conditional.pictures import LabelledPictures


@torch.no_grad()
def encode_pictures(
    autoencoder: DCAutoencoder, pictures: LabelledPictures, batch: int = 64
) -> LabelledPictures:
    """The same labels with latents of unit variance in place of pixels.

    Raises `ConfigError` where the pictures' sides don't divide by the autoencoder's compression.
    """
    ratio, side = autoencoder.config.spatial_compression_ratio, pictures.images.shape[-1]
    if side % ratio:
        raise ConfigError(
            f"size {side} does not divide by the autoencoder's {ratio}; try {ratio * -(-side // ratio)}"
        )
    first = next(autoencoder.parameters())
    parts = [
        autoencoder.encode(images.to(first.device, first.dtype)).float().cpu()
        for images in pictures.images.split(batch)
    ]
    return replace(pictures, images=torch.cat(parts))
