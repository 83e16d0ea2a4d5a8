"""Low-rank factors trained through a plain network: W = W0 + up @ down is written into its own weights.

The network sees ordinary parameters, so that kernels and compiled blocks made for its training serve an
adapter too. The chain rule turns the gradient G of a weight into those of the factors: up^T G and G down^T.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewer.core.errors import ConfigError
from fewer.generate.lora import LowRank, linear_shape


class MergedFactors(nn.Module):
    """A low-rank change of every linear layer and 1x1 convolution of a network; nothing until trained."""

    def __init__(self, network: nn.Module, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.downs, self.ups = nn.ParameterDict(), nn.ParameterDict()
        self._weights: dict[str, nn.Parameter] = {}
        self._starts: dict[str, Tensor] = {}
        network.requires_grad_(False)
        for path, layer in network.named_modules():
            shape = linear_shape(layer)
            if shape is None:
                continue
            outputs, inputs = shape
            kept = min(rank, outputs, inputs)
            weight = layer.weight
            assert isinstance(weight, nn.Parameter)
            down = torch.randn(kept, inputs, generator=generator) / inputs**0.5
            name = path.replace(".", "/")
            self.downs[name] = nn.Parameter(down.to(weight.device))
            self.ups[name] = nn.Parameter(torch.zeros(outputs, kept, device=weight.device))
            self._weights[name] = weight.requires_grad_(True)
            self._starts[name] = weight.detach().clone()
        if not self._weights:
            raise ConfigError("the network has no linear layer to adapt")

    @torch.no_grad()
    def merge(self) -> None:
        """Writes the present factors into the network's weights."""
        for name, weight in self._weights.items():
            start = self._starts[name].flatten(1)
            weight.copy_(torch.addmm(start, self.ups[name], self.downs[name]).view_as(weight))

    def through(self, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The same number, whose gradient reaches the factors; `loss` was computed after `merge`."""
        gradients = torch.autograd.grad(loss, list(self._weights.values()), materialize_grads=True)
        carried = loss.new_zeros((), dtype=torch.float32)
        for name, gradient in zip(self._weights, gradients, strict=True):
            carried = carried + (gradient.flatten(1).float() * (self.ups[name] @ self.downs[name])).sum()
        return carried - carried.detach() + loss.detach().float()

    @torch.no_grad()
    def take(self, averages: dict[str, Tensor]) -> None:
        """Replaces factors by their averages."""
        for name, average in averages.items():
            self.get_parameter(name).copy_(average)

    def adapter(self) -> dict[str, LowRank]:
        """The factors by layer, on the CPU, for a file."""
        return {
            name.replace("/", "."): LowRank(
                self.downs[name].detach().float().cpu(),
                self.ups[name].detach().float().cpu(),
                float(len(self.downs[name])),
            )
            for name in self._weights
        }
