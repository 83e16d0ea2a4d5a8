"""What an autoencoder keeps of held-out pictures: PSNR, SSIM, spectrum, latents, and a Fréchet distance.

The Fréchet distance stands where papers print rFID. Inception's weights are not ours to ship, so features
come from a fixed network of random weights, named in the report: values compare runs of this report with
each other, never with a published rFID.
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewer.core.device import isolated_randomness
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.image_metrics import BEST_PSNR, energy_kept, psnr, ssim

FEATURES = "random-conv-64, seed 0"

Images = Float[Tensor, "batch channels height width"]
Vectors = Float[Tensor, "samples features"]


@torch.no_grad()
def reconstruction_report(model: DCAutoencoder, images: Images, batch: int = 16) -> dict[str, object]:
    """Figures over `images` in [-1, 1], whose sides are multiples of the ratio.

    `spectrum` is the energy of the reconstruction over that of the picture, per octave, low to high (None
    where the pictures have none); `sharpness` its last entry; `latent_std` the smallest and largest spread of
    a scaled channel. A crop without any error counts as 100 dB.
    """
    device = next(model.parameters()).device
    latents, reconstructions = [], []
    for part in images.split(batch):
        encoded = model.encode(part.to(device))
        latents.append(encoded.float().cpu())
        reconstructions.append(model.decode(encoded).float().clamp(-1, 1).cpu())
    reconstruction, latent = torch.cat(reconstructions), torch.cat(latents)
    spread = latent.std((0, 2, 3), correction=0)
    features = RandomFeatures(images.shape[1])
    spectrum = energy_kept(reconstruction, images)
    return {
        "images": len(images),
        "psnr": float(psnr(reconstruction, images).clamp(max=BEST_PSNR).mean()),
        "ssim": float(ssim(reconstruction, images).mean()),
        "sharpness": spectrum[-1],
        "spectrum": spectrum,
        "frechet": frechet_distance(features(reconstruction), features(images)),
        "frechet_features": FEATURES,
        "latent_rms": float(latent.square().mean().sqrt()),
        "latent_std": [float(spread.min()), float(spread.max())],
    }


class RandomFeatures(nn.Module):
    """Three strided convolutions with fixed random weights; mean and maximum of every channel."""

    def __init__(self, in_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        widths = (in_channels, width // 2, width, width)
        with isolated_randomness(0):
            self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(widths))
        self.requires_grad_(False)

    def forward(self, images: Images) -> Vectors:
        x = images
        for layer in self.layers:
            x = layer(x).relu()
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)


def frechet_distance(
    one: Float[Tensor, "samples_one features"], other: Float[Tensor, "samples_other features"]
) -> float:
    """Fréchet distance between Gaussians fitted to two sets of vectors (Heusel et al. 2017, eq. 6)."""
    one, other = one.double(), other.double()
    shift = (one.mean(0) - other.mean(0)).square().sum()
    first, second = _covariance(one), _covariance(other)
    root = _square_root(first)
    # tr (C1 C2)^(1/2) = tr (C1^(1/2) C2 C1^(1/2))^(1/2), whose argument is symmetric.
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    return float((shift + first.trace() + second.trace() - 2 * cross).clamp(min=0))


def _covariance(vectors: Tensor) -> Tensor:
    centred = vectors - vectors.mean(0)
    return centred.T @ centred / max(len(vectors) - 1, 1)


def _square_root(matrix: Tensor) -> Tensor:
    values, basis = torch.linalg.eigh(matrix)
    return (basis * values.clamp(min=0).sqrt()) @ basis.T
