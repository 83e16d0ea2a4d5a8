"""Training a small coarse LoFTR: its loss, and textures seen twice, once through a random homography.

The other half of its pictures, rendered tubes, are made by `tube_pairs`. Everything is made on the device, so
a GPU is never short of pictures. Highlights are fixed to the screen:
the network has to learn that they move with nothing. Loss: focal (alpha 0.25, gamma 2) on the dual-softmax
confidence,
as LoFTR (arXiv 2104.00680, section 3.5). Run by benchmarks/stitch_train_loftr.py.
"""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from fewer.stitch.match.compact import is_compact, straight_through
from fewer.stitch.match.loftr import CoarseLoFTR

Pair = tuple[Tensor, Tensor, Tensor]


def make_pairs(batch: int, size: int, generator: torch.Generator, device: str = "cpu") -> Pair:
    """Two grey views in [0, 1] (batch, 1, size, size) and the homographies that lead pixels of the first to
    the second.

    Scale within 25 %, rotation within 20 degrees, shift within a quarter, perspective up to 0.15 across the
    picture.
    """

    drawn = torch.Generator(device).manual_seed(int(torch.randint(2**31, (1,), generator=generator)))

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=drawn, device=device) * (high - low) + low

    texture = _texture(batch, 2 * size, drawn)
    angle, scale = uniform(-math.pi / 9, math.pi / 9, batch), uniform(0.8, 1.25, batch)
    shift, tilt = uniform(-0.25, 0.25, batch, 2), uniform(-0.15, 0.15, batch, 2)
    motion = torch.zeros(batch, 3, 3, device=device)
    motion[:, 0, 0] = motion[:, 1, 1] = scale * angle.cos()
    motion[:, 0, 1], motion[:, 1, 0] = -scale * angle.sin(), scale * angle.sin()
    motion[:, :2, 2], motion[:, 2, :2], motion[:, 2, 2] = shift, tilt / 2, 1
    first = _see(texture, torch.eye(3, device=device).expand(batch, 3, 3), size)
    second = _see(texture, torch.linalg.inv_ex(motion).inverse, size)
    to_pixels, to_view = (torch.eye(3, device=device) for _ in range(2))
    to_pixels[:2] *= size / 2
    to_pixels[:2, 2] = (size - 1) / 2
    to_view[:2] *= 2 / size
    to_view[:2, 2] = 1 / size - 1
    homography = to_pixels @ motion @ to_view
    film = _texture(batch, size, drawn)
    views = [_spoil(view, film, drawn) for view in (first, second)]
    return views[0], views[1], homography


def true_cells(
    homography: Float[Tensor, "batch 3 3"], size: int, stride: int
) -> tuple[Float[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]:
    """Index of the second picture's cell that shows each cell of the first, and whether there is one."""
    side = size // stride
    grid = torch.arange(side, device=homography.device) * float(stride)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    points = torch.stack([x.flatten(), y.flatten(), torch.ones(side * side, device=x.device)])
    moved = homography @ points
    cells = torch.round(moved[:, :2] / moved[:, 2:] / stride)
    inside = ((cells >= 0) & (cells < side)).all(dim=1) & (moved[:, 2] > 0.1)
    index = cells[:, 1].clamp(0, side - 1) * side + cells[:, 0].clamp(0, side - 1)
    return index, inside


def matching_loss(
    similarity: Float[Tensor, "batch tokens tokens2"],
    index: Shaped[Tensor, "batch tokens"],
    inside: Bool[Tensor, "batch tokens"],
) -> Float[Tensor, ""]:
    """Focal loss: true pairs should be sure, all others should not.

    From logarithms: a fresh network's confidence is below a millionth, where a clamp would leave no gradient.
    """
    similarity = similarity.float()
    logarithm = similarity.log_softmax(1) + similarity.log_softmax(2)
    right = logarithm.gather(2, index.long()[..., None])[..., 0]
    positive = -0.25 * (1 - right.exp()) ** 2 * right
    confidence = logarithm.exp().clamp(max=1 - 1e-6)
    negative = -0.75 * confidence**2 * (1 - confidence).log()
    # products, not a selection: a GPU would have to tell the CPU how many there are
    wrong = negative.sum() - (negative.gather(2, index.long()[..., None])[..., 0] * inside).sum()
    others = confidence.numel() - inside.sum()
    return (positive * inside).sum() / inside.sum().clamp(min=1) + wrong / others.clamp(min=1)


class Rounded(nn.Module):
    """A network seen through the rounding of `compact`: what it will be once it is written in five levels."""

    def __init__(self, model: CoarseLoFTR) -> None:
        super().__init__()
        self.model = _Similarity(model)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """`CoarseLoFTR.similarity` of the rounded weights; the gradient reaches the weights themselves."""
        large = {
            name: straight_through(value)
            for name, value in self.model.named_parameters()
            if is_compact(value)
        }
        return torch.func.functional_call(self.model, large, (first, second))


class _Similarity(nn.Module):
    def __init__(self, model: CoarseLoFTR) -> None:
        super().__init__()
        self.model = model

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.model.similarity(first, second)


@torch.no_grad()
def settle_statistics(model: CoarseLoFTR, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Means and variances of the batch norms from these pictures alone: in training, tubes and textures took
    turns, and the last of them would weigh most.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the batches
    model.train()
    for first, second in batches:
        model.similarity(first, second)
    for norm in norms:
        norm.momentum = 0.1
    model.eval()


def precision(
    confidence: Float[Tensor, "batch tokens tokens"],
    index: Shaped[Tensor, "batch tokens"],
    inside: Bool[Tensor, "batch tokens"],
    across: int,
    threshold: float = 0.05,
) -> tuple[float, float]:
    """Share of confident mutual matches within one cell of the truth, and how many of the visible cells
    they are. Rows of the pictures have `across` cells.
    """
    value, best = confidence.max(dim=2)
    cells = torch.arange(confidence.shape[1], device=best.device)
    found = (confidence.max(dim=1).indices.gather(1, best) == cells) & (value > threshold)
    off = torch.maximum((best % across - index % across).abs(), (best // across - index // across).abs())
    good = found & inside & (off <= 1)
    return float(good.sum() / found.sum().clamp(min=1)), float(good.sum() / inside.sum().clamp(min=1))


def _texture(batch: int, size: int, drawn: torch.Generator) -> Tensor:
    """Smooth noise of five sizes with dark ridges where it crosses zero: they branch like vessels."""
    total = torch.zeros(batch, 1, size, size, device=drawn.device)
    for cells, weight in ((4, 1.0), (11, 0.7), (29, 0.5), (67, 0.35), (size // 3, 0.2)):
        noise = torch.randn(batch, 1, cells, cells, generator=drawn, device=drawn.device)
        noise = F.interpolate(noise, (size, size), mode="bicubic", align_corners=False)
        total = total + weight * noise
        if cells in (11, 29):
            total = total - 1.5 * weight * torch.exp(-((noise / 0.12) ** 2))
    low, high = total.amin(dim=(2, 3), keepdim=True), total.amax(dim=(2, 3), keepdim=True)
    return (total - low) / (high - low)


def _see(texture: Tensor, homography: Tensor, size: int) -> Tensor:
    """The middle of the texture (twice as wide as a view) through a homography in view units of [-1, 1]."""
    line = (torch.arange(size, device=texture.device) * 2 + 1) / size - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    points = torch.stack([x.flatten(), y.flatten(), torch.ones(size * size, device=texture.device)])
    moved = homography @ points
    grid = (moved[:, :2] / moved[:, 2:].clamp(min=0.1) / 2).mT.reshape(-1, size, size, 2)
    return F.grid_sample(texture, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _spoil(view: Tensor, film: Tensor, drawn: torch.Generator) -> Tensor:
    """Gain, gamma, vignetting, noise and highlights; the last from a film that stays with the screen."""
    batch, _, size, _ = view.shape

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(batch, 1, 1, 1, generator=drawn, device=drawn.device) * (high - low) + low

    line = torch.linspace(-1, 1, size, device=view.device)
    off = (line[:, None] - uniform(-0.4, 0.4)) ** 2 + (line[None] - uniform(-0.4, 0.4)) ** 2
    view = view.clamp(1e-3, 1) ** uniform(0.7, 1.4) * uniform(0.6, 1.2) / (1 + uniform(0.0, 0.8) * off)
    view = view + uniform(0.005, 0.03) * torch.randn(view.shape, generator=drawn, device=view.device)
    edge = film.flatten(1).quantile(0.95, dim=1).view(batch, 1, 1, 1)
    return torch.where(film > edge, view + 0.7, view).clamp(0, 1)
