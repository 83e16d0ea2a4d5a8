"""Adds a stage to a small autoencoder: the same latents, pictures of twice the side.

A real large edition takes some minutes of a GPU: fewer train large --download --minutes 3 --output DIR.
"""

import torch

from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.autoencoder.extended import extended, extended_config, own_parts
from fewer.generate.scenes.presets import preset


def main() -> None:
    base = DCAutoencoder(preset("emoji-test").autoencoder).eval()
    larger = extended(base, extended_config(base.config, width=8)).eval()
    picture = torch.rand(1, 3, 64, 48) * 2 - 1
    latents = larger.encode(picture)
    own = sum(parameter.numel() for part in own_parts(larger) for parameter in part.parameters())
    print(f"{tuple(picture.shape)} -> {tuple(latents.shape)} -> {tuple(larger.decode(latents).shape)}")
    print(f"small autoencoder: {tuple(base.decode(latents).shape)}; {own:,} parameters are not shared")


if __name__ == "__main__":
    main()
