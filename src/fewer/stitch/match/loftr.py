"""Coarse LoFTR: a small convolutional pyramid, linear attention within and between two images, dual softmax.

`TINY` is the shape of the shipped student (126 thousand parameters, stride 16), `SMALL` that of the network
which `train_loftr.py` trains (0.9 million, stride 8; shipped in five levels, see `compact`). Neither has a
fine stage; matches are tracked to sub-pixel places.

Rebuilt from the description of Coarse_LoFTR_TRT (arXiv 2202.00770, Apache-2.0), whose distilled weights are
shipped beside this file (`loftr_student.safetensors`, half precision). Tensor names are those of the
published
checkpoint.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fewer.core.errors import FileError
from fewer.core.tensors import read_tensors
from fewer.stitch.match.compact import unpack

WEIGHTS = Path(__file__).parent / "loftr_student.safetensors"
TUBE_WEIGHTS = Path(__file__).parent / "loftr_tube.safetensors"
_TEMPERATURE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class LoFTRShape:
    """`dims[0]` after the first convolution, then one stage each; all stages but the first halve the
    image.
    """

    dims: tuple[int, ...] = (8, 8, 16, 32, 32)
    heads: int = 1
    layers: int = 4

    @property
    def stride(self) -> int:
        """Pixels a cell."""
        return 2 ** (len(self.dims) - 1)


TINY = LoFTRShape()
SMALL = LoFTRShape(dims=(32, 32, 64, 96), heads=4)


class CoarseLoFTR(nn.Module):
    """Two grey images in [0, 1], sides multiples of the stride -> confidence of every pair of cells."""

    def __init__(self, shape: LoFTRShape = TINY) -> None:
        super().__init__()
        self.shape = shape
        self.backbone = _Backbone(shape.dims)
        self.loftr_coarse = _Transformer(shape.dims[-1], shape.heads, shape.layers)

    def forward(
        self, first: Float[Tensor, "batch 1 height width"], second: Float[Tensor, "batch 1 height2 width2"]
    ) -> Float[Tensor, "batch tokens tokens2"]:
        """Row i, column j: how sure cell i of the first shows what cell j of the second does."""
        return dual_softmax(self.similarity(first, second))

    def similarity(
        self, first: Float[Tensor, "batch 1 height width"], second: Float[Tensor, "batch 1 height2 width2"]
    ) -> Float[Tensor, "batch tokens tokens2"]:
        """What the confidence is made of; training needs its logarithm."""
        if first.shape == second.shape:
            cells = self.describe(torch.cat([first, second])).chunk(2)
        else:
            cells = self.describe(first), self.describe(second)
        return self._similarity(*cells)

    def describe(self, image: Float[Tensor, "batch 1 height width"]) -> Float[Tensor, "batch tokens dim"]:
        """What the convolutions make of a picture alone: four fifths of the work, needed once a picture."""
        maps = self.backbone(image)
        return (maps + position_table(*maps.shape[1:], maps.device).to(maps)).flatten(2).mT

    def compare(
        self, first: Float[Tensor, "batch tokens dim"], second: Float[Tensor, "batch tokens2 dim"]
    ) -> Float[Tensor, "batch tokens tokens2"]:
        """Confidence of every pair of cells of two described pictures."""
        return dual_softmax(self._similarity(first, second))

    def _similarity(self, first: Tensor, second: Tensor) -> Tensor:
        left, right = self.loftr_coarse(first, second)
        scale = math.sqrt(left.shape[-1])
        return (left / scale) @ (right / scale).mT / _TEMPERATURE


def dual_softmax(
    similarity: Float[Tensor, "batch tokens tokens2"],
) -> Float[Tensor, "batch tokens tokens2"]:
    """Sure only where each cell is the other's choice."""
    return similarity.softmax(1) * similarity.softmax(2)


def load_tiny_loftr(path: Path = WEIGHTS) -> CoarseLoFTR:
    """Either shipped network, or one that `benchmarks/stitch_train_loftr.py` wrote (the shape of `SMALL`),
    in float32 for the CPU. Raises FileError when the file is damaged, missing, or of another network.
    """
    read = read_tensors(path)
    for shape in (TINY, SMALL):
        model = CoarseLoFTR(shape)
        wanted = {name: value.shape for name, value in model.state_dict().items()}
        tensors = unpack(read, wanted)
        if wanted == {name: value.shape for name, value in tensors.items()}:
            model.load_state_dict(tensors)
            return model.eval().requires_grad_(False)
    raise FileError(
        f"{path.name}: its tensors are those of neither small LoFTR (stride {TINY.stride} or "
        f"{SMALL.stride}); give a file that benchmarks/stitch_train_loftr.py wrote"
    )


def position_table(
    dim: int, height: int, width: int, device: torch.device | str = "cpu"
) -> Float[Tensor, "dim height width"]:
    """Sines and cosines of the cell's place. The divisor keeps the published operator-order slip
    (-ln 10000 / dim // 2 = -1 for every dim up to 92...), because the weights were trained with it."""
    y = torch.arange(1.0, height + 1, device=device)[:, None].expand(height, width)
    x = torch.arange(1.0, width + 1, device=device)[None].expand(height, width)
    steps = torch.arange(0.0, dim // 2, 2, device=device)
    divisor = torch.exp(steps * (-math.log(10000.0) / dim // 2))[:, None, None]
    table = torch.empty(dim, height, width, device=device)
    table[0::4], table[1::4] = torch.sin(x * divisor), torch.cos(x * divisor)
    table[2::4], table[3::4] = torch.sin(y * divisor), torch.cos(y * divisor)
    return table


class _Backbone(nn.Module):
    """ResNet with two blocks a stage; the finer outputs of the published pyramid are not needed."""

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, dims[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(dims[0])
        self.stages = len(dims) - 1
        for number in range(1, len(dims)):
            first = _Block(dims[number - 1], dims[number], 1 if number == 1 else 2)
            self.add_module(f"layer{number}", nn.Sequential(first, _Block(dims[number], dims[number], 1)))
        self.add_module(f"layer{self.stages}_outconv", nn.Conv2d(dims[-1], dims[-1], 1, bias=False))

    def forward(self, image: Float[Tensor, "batch 1 height width"]) -> Float[Tensor, "batch dim lat_h lat_w"]:
        features = F.relu(self.bn1(self.conv1(image)))
        for number in range(1, self.stages + 1):
            features = self.get_submodule(f"layer{number}")(features)
        return self.get_submodule(f"layer{self.stages}_outconv")(features)


class _Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outside), nn.BatchNorm2d(outside)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride=stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu((x if self.downsample is None else self.downsample(x)) + out)


class _Transformer(nn.Module):
    """Self and cross attention in turn; both images go through the same weights."""

    def __init__(self, dim: int, heads: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Attention(dim, heads) for _ in range(layers))

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        for number, layer in enumerate(self.layers):
            if number % 2 == 0:
                left, right = layer(left, left), layer(right, right)
            else:
                left = layer(left, right)
                right = layer(right, left)  # sees the new left: that is how it was trained
        return left, right


class _Attention(nn.Module):
    """Linear attention, phi = elu + 1, then the two-layer message of LoFTR."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.merge = (
            nn.Linear(dim, dim, bias=False) for _ in range(4)
        )
        self.mlp = nn.Sequential(
            nn.Linear(2 * dim, 2 * dim, bias=False), nn.ReLU(), nn.Linear(2 * dim, dim, bias=False)
        )
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-7), nn.LayerNorm(dim, eps=1e-7)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], source: Float[Tensor, "batch tokens2 dim"]
    ) -> Tensor:
        query, key, value = (
            rearrange(project(side), "b n (heads d) -> b heads n d", heads=self.heads)
            for project, side in ((self.q_proj, x), (self.k_proj, source), (self.v_proj, source))
        )
        query, key = F.elu(query) + 1, F.elu(key) + 1
        norm = query @ key.sum(dim=2, keepdim=True).mT
        message = rearrange((query @ (key.mT @ value)) / (norm + 1e-6), "b heads n d -> b n (heads d)")
        return x + self.norm2(self.mlp(torch.cat([x, self.norm1(self.merge(message))], dim=-1)))
