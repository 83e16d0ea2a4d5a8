"""LPIPS (Zhang et al. 2018) from a weight file that the user brings.

The file is safetensors with torchvision's VGG16 names (`features.0.weight` ... `features.28.bias`) and the
linear heads of the lpips package (`lin0.model.1.weight` ... `lin4.model.1.weight`). We ship neither;
without a file, training uses the weight-free terms of `losses.py`.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fewer.core.errors import FileError
from fewer.core.tensors import read_tensors, tensor_header

Image = Float[Tensor, "batch channels height width"]
# VGG16: channels of each convolution, "M" a pooling; a feature is read before each pooling.
_LAYERS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)
# The shift and scale of the lpips package, for pictures in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """Perceptual distance of RGB pictures in [-1, 1]; frozen, differentiable in the pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict()
        channels, index = 3, 0
        for layer in _LAYERS:
            if layer == "M":
                index += 1
                continue
            assert isinstance(layer, int)
            self.features[str(index)] = nn.Conv2d(channels, layer, 3, padding=1)
            channels, index = layer, index + 2
        for head, width in enumerate((64, 128, 256, 512, 512)):
            self.register_parameter(f"lin{head}", nn.Parameter(torch.zeros(1, width, 1, 1)))

    @classmethod
    def load(cls, path: Path) -> "LPIPS":
        """Opens a weight file. Raises `FileError` that lists the tensors which are missing or misshapen."""
        header, _ = tensor_header(path)
        model = cls()
        wanted = {
            _file_name(name): (name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()
        }
        wrong = [
            name for name, (_, shape) in wanted.items() if name not in header or header[name].shape != shape
        ]
        if wrong:
            raise FileError(f"{path.name!r} is no LPIPS weight file: missing or misshapen {', '.join(wrong)}")
        tensors = read_tensors(path)
        model.load_state_dict({own: tensors[name].float() for name, (own, _) in wanted.items()})
        return model.requires_grad_(False).eval()

    def forward(self, image: Image, reference: Image) -> Float[Tensor, ""]:
        """Mean distance over the batch."""
        total = image.new_zeros((), dtype=torch.float32)
        pairs = zip(self._read(image), self._read(reference), strict=True)
        for head, (ours, theirs) in enumerate(pairs):
            difference = (_unit(ours) - _unit(theirs)).square()
            total = total + functional.conv2d(difference, getattr(self, f"lin{head}")).mean()
        return total

    def _read(self, image: Image) -> list[Tensor]:
        shift, scale = (image.new_tensor(values)[:, None, None] for values in (_SHIFT, _SCALE))
        x = (image - shift) / scale
        found = []
        index = 0
        for layer in _LAYERS:
            if layer == "M":
                found.append(x)
                x = functional.max_pool2d(x, 2)
                index += 1
            else:
                x = functional.relu(self.features[str(index)](x))
                index += 2
        return [*found, x]


def _unit(features: Tensor) -> Tensor:
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)


def _file_name(name: str) -> str:
    return f"{name}.model.1.weight" if name.startswith("lin") else name
