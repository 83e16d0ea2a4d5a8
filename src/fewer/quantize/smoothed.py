"""A part's weight under one vector of smoothing scales, worked on a few rows at a time.

Nothing here holds a second copy of the weight in fp32: residual, its rounding and the output error are made
panel by panel from the 16-bit weight, so that quantizing a layer takes little more memory than one fp32 copy
of it (the matrix the SVD works on).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.quantize.formats import (
    GELU_SHIFT,
    Format,
    Scales,
    encode_weight,
    round_activations,
    round_weight,
)
from fewer.quantize.lowrank import Branch
from fewer.quantize.parts import Part

INPUT_BYTES = {"cpu": 5 * 2**20, "cuda": 2 * 2**30}
"""Memory for the fp32 copies of the input rows that are worked on at once."""


@dataclass(frozen=True, slots=True)
class SmoothedPart:
    """W-hat = W * lambda of a part, and its inputs x / lambda."""

    part: Part
    scales: Float[Tensor, "dim"] | None
    """lambda; None is all ones."""
    form: Format
    scale_dtype: torch.dtype

    def whole(self) -> Float[Tensor, "out dim"]:
        """All of W-hat in fp32: the one full copy, a new tensor each time."""
        joined = torch.empty(self.part.shape, device=self.part.weights[0].device)
        for weight, rows in self.part.panels():
            joined[rows] = weight if self.scales is None else weight * self.scales.float()
        return joined

    def residuals(self, branch: Branch) -> Iterator[tuple[slice, Float[Tensor, "rows dim"]]]:
        """(rows, R = W-hat - up down of these rows), each panel a new tensor."""
        for weight, rows in self.part.panels():
            panel = weight.to(torch.float32, copy=True)
            if self.scales is not None:
                panel.mul_(self.scales.float())
            yield rows, panel.addmm_(branch.up[rows], branch.down, alpha=-1)

    def rounded(self, branch: Branch) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows, residual, residual on the format's grid)."""
        peak = self._tensor_peak(branch)
        for rows, residual in self.residuals(branch):
            yield rows, residual, round_weight(residual, self.form, self.scale_dtype, peak)

    def encode(self, branch: Branch) -> tuple[Tensor, Scales]:
        """Codes and scales of the whole residual, rounded to nearest."""
        peak = self._tensor_peak(branch)
        made = [
            encode_weight(residual, self.form, self.scale_dtype, peak)
            for _, residual in self.residuals(branch)
        ]
        channels = [scales.channel for _, scales in made if scales.channel is not None]
        group = torch.cat([scales.group for _, scales in made])
        return torch.cat([codes for codes, _ in made]), Scales(
            group, torch.cat(channels) if channels else None
        )

    def loss(self, branch: Branch, most_rows: int, bound: Tensor | float = float("inf")) -> Tensor:
        """||Qa(x) Qw(R)^T - x R^T||^2 over the sampled rows: what rounding does to the layer's output.

        The branch's own product is exact and cancels. On a CPU the work stops, with infinity as the answer,
        once the sum is beyond `bound`; a GPU would have to be waited for.
        """
        total = torch.zeros((), device=self.part.weights[0].device)
        for inputs, rounded_inputs in self.inputs(most_rows):
            for _, residual, rounded in self.rounded(branch):
                total += _squared(rounded_inputs, rounded, inputs, residual)
                if total.device.type == "cpu" and total.item() > bound:
                    return torch.full_like(total, torch.inf)
        return total

    def settle(self, branch: Branch, target: Float[Tensor, "out dim"], most_rows: int) -> float:
        """The same loss, while `target` becomes W-hat - Qw(R), which the next branch approximates.

        Without samples it is the weight's own error ||R - Qw(R)||^2.
        """
        total = torch.zeros((), device=target.device)
        chunks = self.inputs(most_rows) if self.part.sampled else iter([(None, None)])
        for inputs, rounded_inputs in chunks:
            for rows, residual, rounded in self.rounded(branch):
                if inputs is not None and rounded_inputs is not None:
                    total += _squared(rounded_inputs, rounded, inputs, residual)
                    residual.sub_(rounded)
                else:
                    total += residual.sub_(rounded).square().sum()
                torch.addmm(residual, branch.up[rows], branch.down, out=target[rows])
        return total.item()

    def inputs(self, most_rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(x / lambda, the same rounded) of the sampled rows, in fp32, in chunks that fit `INPUT_BYTES`."""
        assert self.part.samples is not None
        rows = self.part.samples.rows[:most_rows]
        device = self.part.weights[0].device
        height = INPUT_BYTES.get(device.type, INPUT_BYTES["cpu"]) // (8 * max(1, rows.shape[1]))
        chunks = -(-len(rows) // max(64, height))
        for chunk in rows.split(-(-len(rows) // max(1, chunks))):
            exact = self.smooth_inputs(chunk)
            yield (
                exact,
                round_activations(
                    exact, self.form, unsigned=self.part.unsigned, scale_dtype=self.scale_dtype
                ),
            )

    def smooth_inputs(self, rows: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
        """What the quantizer of the activations sees."""
        inputs = rows.to(self.part.weights[0].device, torch.float32, copy=True)
        if self.part.unsigned:
            inputs.add_(GELU_SHIFT)
        return inputs if self.scales is None else inputs.div_(self.scales.float())

    def _tensor_peak(self, branch: Branch) -> Tensor | None:
        """nvfp4 has one scale for the whole weight, so one pass looks for the largest magnitude."""
        if self.form.weight != "nvfp4":
            return None
        return torch.stack([residual.abs().amax() for _, residual in self.residuals(branch)]).amax()


def _squared(rounded_inputs: Tensor, rounded: Tensor, inputs: Tensor, residual: Tensor) -> Tensor:
    error = torch.addmm(rounded_inputs @ rounded.mT, inputs, residual.mT, alpha=-1)
    return torch.linalg.vector_norm(error).square()
