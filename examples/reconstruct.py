"""Encode and decode a picture with an autoencoder from a folder, whole and in exact tiles.

python examples/reconstruct.py [PICTURE MODEL_FOLDER]    without arguments: a drawn picture, random weights
"""

import sys

import numpy as np
import torch
from PIL import Image

from fewer.core.device import isolated_randomness
from fewer.core.files import read_image
from fewer.generate import DCAutoencoder
from fewer.generate.autoencoder.crops import to_picture, to_tensor
from fewer.generate.autoencoder.presets import preset_config
from fewer.generate.image_metrics import psnr


def main() -> None:
    if len(sys.argv) == 3:
        autoencoder = DCAutoencoder.load(sys.argv[2])
        image = to_tensor(read_image(sys.argv[1]))[None]
    else:
        with isolated_randomness(0):
            autoencoder = DCAutoencoder(preset_config("f16")).requires_grad_(False).eval()
        image = to_tensor(drawn())[None]
    latents = autoencoder.encode(image, pad=True)
    whole = autoencoder.decode(latents, size=image.shape[2:], tile=None)
    tiled = autoencoder.decode(latents, size=image.shape[2:], tile=64)
    print("latents", list(latents.shape), "PSNR", round(float(psnr(whole, image)[0]), 2), "dB")
    print("largest difference between whole and tiled:", float((whole - tiled).abs().max()))
    assert torch.allclose(whole, tiled, atol=1e-4)
    to_picture(whole[0]).save("reconstruction.png")


def drawn() -> Image.Image:
    rows, columns = np.mgrid[0:90, 0:150]
    waves = np.stack([np.sin(rows / 9), np.cos(columns / 13), np.sin((rows + columns) / 21)], -1)
    return Image.fromarray(((waves + 1) * 127).astype(np.uint8))


if __name__ == "__main__":
    main()
