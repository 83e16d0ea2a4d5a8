"""PSNR and SSIM of image batches, and how sharp a reconstruction is. Checked against torchmetrics."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

WINDOW = 11
BEST_PSNR = 100.0
"""What reports say of equal pictures, in dB: infinity is no number in JSON, nor in a mean."""
FAINTEST = 1e-14
"""Energy below which a band is empty; one pixel in a million, off by one level of 255, has more."""

Image = Float[Tensor, "batch channels height width"]
PerImage = Float[Tensor, "batch"]


def psnr(image: Image, reference: Image, value_range: float = 2.0) -> PerImage:
    """Peak signal-to-noise ratio of each image in dB; `value_range` is 2 for [-1, 1]. Infinite if equal."""
    error = (image.double() - reference.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(value_range**2 / error)


def ssim(image: Image, reference: Image, value_range: float = 2.0) -> PerImage:
    """Structural similarity (Wang et al. 2004) of each image: Gaussian window of 11, sigma 1.5.

    Borders are reflected, as often as a small picture needs, so that every pixel counts.
    """
    channels = image.shape[1]
    rows = _gaussian(image)
    window = (rows[:, None] * rows[None]).expand(channels, 1, -1, -1)

    def blur(x: Tensor) -> Tensor:
        return functional.conv2d(x, window, groups=channels)

    image, reference = _reflected(image.double()), _reflected(reference.double())
    mean_a, mean_b = blur(image), blur(reference)
    variance_a = blur(image * image) - mean_a * mean_a
    variance_b = blur(reference * reference) - mean_b * mean_b
    covariance = blur(image * reference) - mean_a * mean_b
    c1, c2 = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2  # K1, K2 of the paper
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a.clamp(min=0) + variance_b.clamp(min=0) + c2)
    return (luminance * structure).flatten(1).mean(1)


def _gaussian(like: Tensor) -> Float[Tensor, "window"]:
    distance = torch.arange(WINDOW, dtype=torch.float64, device=like.device) - WINDOW // 2
    weights = torch.exp(-(distance**2) / (2 * 1.5**2))
    return weights / weights.sum()


def _reflected(image: Image) -> Float[Tensor, "batch channels padded_h padded_w"]:
    for axis in (2, 3):
        length = image.shape[axis]
        period = max(2 * (length - 1), 1)
        position = torch.arange(-(WINDOW // 2), length + WINDOW // 2, device=image.device) % period
        index = torch.minimum(position, 2 * (length - 1) - position).clamp(min=0)
        image = image.index_select(axis, index)
    return image


def band_energy(image: Image, bands: int = 4) -> Float[Tensor, "bands"]:
    """Mean spectral energy per octave of spatial frequency, lowest first; the constant is left out.

    The last band holds radii above half of the Nyquist frequency (corners included), the one before it
    the octave below, and so on; the first takes everything that is left.
    """
    spectrum = torch.fft.fft2(image.double()).abs().square().mean((0, 1))
    vertical, horizontal = (torch.fft.fftfreq(side, device=image.device).double() for side in image.shape[2:])
    radius = (vertical[:, None] ** 2 + horizontal[None] ** 2).sqrt() / 0.5
    energies = []
    for band in range(bands):
        low = 0.0 if band == 0 else 2.0 ** (band - bands)
        high = math.inf if band == bands - 1 else 2.0 ** (band - bands + 1)
        inside = (radius > low) & (radius <= high)
        energies.append((spectrum * inside).sum())
    return torch.stack(energies) / (image.shape[2] * image.shape[3]) ** 2


def energy_kept(image: Image, reference: Image, bands: int = 4) -> list[float | None]:
    """Energy of `image` over that of `reference`, per octave, lowest first; None where it has none."""
    pairs = zip(band_energy(image, bands).tolist(), band_energy(reference, bands).tolist(), strict=True)
    return [kept / whole if whole > FAINTEST else None for kept, whole in pairs]


def sharpness(image: Image, reference: Image) -> float:
    """High-frequency energy (above half of Nyquist) of `image` over that of `reference`; 1 is as sharp."""
    return float(band_energy(image)[-1] / band_energy(reference)[-1].clamp(min=1e-30))
