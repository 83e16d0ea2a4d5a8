"""CAME, the optimizer of Sana's training (arXiv 2307.02047, algorithm 2).

Adafactor's factored second moment, a first moment, and a second factored estimate of how far updates stray
from that first moment: where they stray much, the step is smaller. Memory: one moment of full size and a
row and a column for each matrix, half of AdamW's.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from fewer.core.errors import ConfigError


class CAME(torch.optim.Optimizer):
    """Confidence-guided adaptive memory-efficient optimization.

    Tensors of more than two axes (convolutions) are taken as matrices of their first axis against the rest.
    Raises `ConfigError` for betas outside [0, 1) or a learning rate of 0 or less.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 1e-4,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: tuple[float, float] = (1e-30, 1e-16),
        clip_threshold: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        if lr <= 0 or not all(0 <= beta < 1 for beta in betas) or clip_threshold <= 0:
            raise ConfigError(f"CAME with lr {lr}, betas {betas}; lr must be above 0 and betas in [0, 1)")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "clip_threshold": clip_threshold,
            "weight_decay": weight_decay,
        }
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict) -> None:
        gradient = _as_matrix(parameter.grad.float())
        state = self.state[parameter]
        if not state:
            state["mean"] = torch.zeros_like(gradient)
            for name in ("square", "instability"):
                for key, start in _start_moment(name, gradient, factored=gradient.ndim == 2).items():
                    state[key] = start
        beta1, beta2, beta3 = group["betas"]
        update = gradient * _inverse_root(state, "square", gradient.square() + group["eps"][0], beta2)
        update /= (update.square().mean().sqrt() / group["clip_threshold"]).clamp(min=1.0)
        mean = state["mean"].mul_(beta1).add_(update, alpha=1 - beta1)
        if gradient.ndim == 2:
            stray = (update - mean).square() + group["eps"][1]
            mean = mean * _inverse_root(state, "instability", stray, beta3)
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(mean.view_as(parameter).to(parameter.dtype), alpha=group["lr"])


def _as_matrix(gradient: Tensor) -> Tensor:
    return gradient.flatten(1) if gradient.ndim > 2 else gradient


def _start_moment(name: str, gradient: Tensor, *, factored: bool) -> dict[str, Tensor]:
    if factored:
        rows, columns = gradient.shape
        return {f"{name}_rows": gradient.new_zeros(rows), f"{name}_columns": gradient.new_zeros(columns)}
    return {name: torch.zeros_like(gradient)} if name == "square" else {}


def _inverse_root(state: dict, name: str, squares: Tensor, beta: float) -> Tensor:
    """1/sqrt of the running mean of `squares`; for a matrix that mean is rows x columns / mean of rows."""
    if squares.ndim != 2:
        return state[name].mul_(beta).add_(squares, alpha=1 - beta).rsqrt()
    rows = state[f"{name}_rows"].mul_(beta).add_(squares.mean(dim=1), alpha=1 - beta)
    columns = state[f"{name}_columns"].mul_(beta).add_(squares.mean(dim=0), alpha=1 - beta)
    return (rows / rows.mean()).rsqrt()[:, None] * columns.rsqrt()[None]
