"""The optimizer of `fewer.generate.autoencoder.orthogonal_steps` (Muon) in a form that a CUDA graph may hold,
with all matrices of one shape in one product.
"""
# bench: by hand: residual_curve.py and fewer_tokens.py train with it (--orthogonal)

import math

import torch
from torch import Tensor

from fewer.generate.autoencoder.orthogonal_steps import MOMENTUM, is_matrix, orthogonal


class OrthogonalSteps:
    """Stands where an optimizer stands in `graphed.Trainee`: param_groups, state, step, zero_grad."""

    def __init__(
        self, groups: list[dict], lr: Tensor, betas: tuple[float, float], capturable: bool, fused: bool | None
    ) -> None:
        parameters = [p for group in groups for p in group["params"]]
        matrices = [p for p in parameters if is_matrix(p)]
        chosen = {id(p) for p in matrices}
        rest = [
            {**group, "params": [p for p in group["params"] if id(p) not in chosen]}
            for group in groups
        ]  # fmt: skip
        self.adamw = torch.optim.AdamW(
            [group for group in rest if group["params"]],
            lr=lr, betas=betas, capturable=capturable, fused=fused,
        )  # fmt: skip
        self.param_groups = [*self.adamw.param_groups, {"params": matrices, "lr": lr.clone()}]
        self.momenta = {p: {"momentum": torch.zeros_like(p)} for p in matrices}
        shapes: dict[tuple[int, int], list[Tensor]] = {}
        for matrix in matrices:
            shapes.setdefault(flat_shape(matrix), []).append(matrix)
        self.batches = list(shapes.values())

    @property
    def state(self) -> dict[Tensor, dict[str, Tensor]]:
        """What stands between steps, by parameter."""
        return {**self.adamw.state, **self.momenta}

    @torch.no_grad()
    def step(self) -> None:
        self.adamw.step()
        rate = self.param_groups[-1]["lr"]
        for batch in self.batches:
            momenta = [self.momenta[p]["momentum"] for p in batch]
            gradients = [p.grad for p in batch]
            torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
            ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)
            steps = orthogonal(torch.stack([m.flatten(1) for m in ahead]))
            length = 0.2 * math.sqrt(max(steps.shape[1:])) * rate
            for parameter, step in zip(batch, steps * length, strict=True):
                parameter.sub_(step.view(parameter.shape))

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.adamw.zero_grad(set_to_none=set_to_none)
        for matrix in self.momenta:
            matrix.grad = None


def flat_shape(parameter: Tensor) -> tuple[int, int]:
    """Outputs, numbers of an output."""
    return len(parameter), parameter[0].numel()
