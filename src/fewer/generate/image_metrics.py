"""PSNR and SSIM of image batches, and how sharp a reconstruction is. Checked against torchmetrics."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

WINDOW = 11
BEST_PSNR = 100.0
"""What reports say of equal pictures, in dB: infinity is no number in JSON, nor in a mean."""
STRIP = 2**22
"""Numbers of a batch that are compared at once."""
FAINTEST = 1e-14
"""Energy below which a band is empty; one pixel in a million, off by one level of 255, has more."""

Image = Float[Tensor, "batch channels height width"]
PerImage = Float[Tensor, "batch"]


def psnr(image: Image, reference: Image, value_range: float = 2.0) -> PerImage:
    """Peak signal-to-noise ratio of each image in dB; `value_range` is 2 for [-1, 1]. Infinite if equal."""
    parts = [
        (one.double() - other.double()).square().sum((1, 2, 3)) for one, other in _strips(image, reference)
    ]
    error = torch.stack(parts).sum(0) / image[0].numel()
    return 10 * torch.log10(value_range**2 / error)


def ssim(image: Image, reference: Image, value_range: float = 2.0) -> PerImage:
    """Structural similarity (Wang et al. 2004) of each image: Gaussian window of 11, sigma 1.5.

    Borders are reflected, as often as a small picture needs, so that every pixel counts.
    """
    weights = _gaussian(image).tolist()
    total = image.new_zeros(len(image), dtype=torch.float64)
    c1, c2 = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2  # K1, K2 of the paper
    for one, other in _strips(_reflected(image), _reflected(reference), WINDOW - 1):
        a, b = one.double(), other.double()
        mean_a, mean_b = _blur(a, weights), _blur(b, weights)
        variance_a = _blur(a * a, weights) - mean_a * mean_a
        variance_b = _blur(b * b, weights) - mean_b * mean_b
        covariance = _blur(a * b, weights) - mean_a * mean_b
        luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        structure = (2 * covariance + c2) / (variance_a.clamp(min=0) + variance_b.clamp(min=0) + c2)
        total += (luminance * structure).sum((1, 2, 3))
    return total / image[0].numel()


def _strips(image: Image, reference: Image, overlap: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Both pictures in rows of bounded size: in double precision a large one would take gigabytes.

    Each strip but the last runs `overlap` rows into the next.
    """
    height = image.shape[2] - overlap
    rows = max(1, STRIP // max(1, image.numel() // image.shape[2]))
    for start in range(0, height, rows):
        stop = min(start + rows, height) + overlap
        yield image[:, :, start:stop], reference[:, :, start:stop]


def _blur(x: Tensor, weights: list[float]) -> Tensor:
    """Along rows, then columns: a CPU's grouped convolution in fp64 takes thirty times as long."""
    for axis in (2, 3):
        length = x.shape[axis] - WINDOW + 1
        blurred = weights[0] * x.narrow(axis, 0, length)
        for offset, weight in enumerate(weights[1:], 1):
            blurred.add_(x.narrow(axis, offset, length), alpha=weight)
        x = blurred
    return x


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
