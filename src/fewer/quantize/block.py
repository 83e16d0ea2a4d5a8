"""The smoothing search's yardstick for q, k and v: what a candidate does to the output of the whole attention
block.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fewer.core.modules import set_module
from fewer.quantize.calibrate import BlockCall
from fewer.quantize.formats import Format, round_activations
from fewer.quantize.lowrank import Branch
from fewer.quantize.solve import Candidate


class CandidateLinear(nn.Module):
    """A linear layer as one candidate would make it, in full precision storage: nothing is packed yet."""

    def __init__(
        self, original: nn.Module, candidate: tuple[Tensor, Branch, Tensor | None], form: Format
    ) -> None:
        super().__init__()
        self.rounded, self.branch, self.scales = candidate
        self.form = form
        self.bias: Tensor | None = original.bias  # pyright: ignore
        self.channels_first = isinstance(original, nn.Conv2d)

    def forward(self, inputs: Tensor) -> Tensor:
        moved = inputs.movedim(-3, -1) if self.channels_first else inputs
        rows = moved.reshape(-1, moved.shape[-1]).float()
        rows = rows if self.scales is None else rows / self.scales.float()
        outputs = round_activations(rows, self.form) @ self.rounded.mT
        outputs = outputs + (rows @ self.branch.down.mT) @ self.branch.up.mT
        if self.bias is not None:
            outputs = outputs + self.bias.float()
        outputs = outputs.to(inputs.dtype).reshape(*moved.shape[:-1], -1)
        return outputs.movedim(-1, -3) if self.channels_first else outputs


def block_loss(
    module: nn.Module, block: str, calls: list[BlockCall], form: Format
) -> Callable[[Candidate], Tensor] | None:
    """A function from candidate to summed squared error of `block`'s output over the recorded calls.

    None if there is nothing to compare (no block named, or its calls did not fit the memory budget).
    """
    if not block or not calls:
        return None

    def loss(candidate: Candidate) -> Tensor:
        originals = {name: module.get_submodule(name) for name in candidate}
        try:
            for name, values in candidate.items():
                set_module(module, name, CandidateLinear(originals[name], values, form))
            with torch.no_grad():
                return torch.stack([_error(module.get_submodule(block), call) for call in calls]).sum()
        finally:
            for name, original in originals.items():
                set_module(module, name, original)

    return loss


def _error(block: nn.Module, call: BlockCall) -> Tensor:
    output = block(*call.positional, **call.named)
    result = output[0] if isinstance(output, (tuple, list)) else output
    return (result.float() - call.output.float()).square().sum()
