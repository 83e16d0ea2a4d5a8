"""GroupNorm over bands: exact, or corrected by the change of the own band (DistriFusion, equation 2).

Statistics are (mean, mean of squares), a few numbers in fp64: their difference is the variance, of which fp32
would leave nothing where features lie far from zero. Unlike the reference implementation's, the variance is
the biased one, so that the exact mode equals a single device's GroupNorm.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import group_norm

from fewer.parallel.session import Session

Moments = Float[Tensor, "two batch groups"]


class ParallelGroupNorm(nn.Module):
    """Shares the original's tensors. `level` is how often the picture has been halved where it stands."""

    def __init__(self, original: nn.GroupNorm, session: Session, layer: str, level: int = 0) -> None:
        super().__init__()
        self.level = level
        self.weight, self.bias = original.weight, original.bias
        self.num_groups, self.eps = original.num_groups, original.eps
        self.session, self.layer = session, layer

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *space"]:
        session, weight, bias = self.session, self.weight, self.bias
        if session.alone or (not session.exact and session.plan.norm_rule == "separate"):
            return group_norm(x, self.num_groups, weight, bias, self.eps)
        own = moments_of(x, self.num_groups)
        mean, square = self._global(own)
        variance = square - mean.square()
        if not session.exact:  # a corrected estimate can be negative; the own variance never is
            variance = torch.where(variance < 0, own[1] - own[0].square(), variance)
        wide = torch.promote_types(x.dtype, torch.float32)
        scale = torch.rsqrt(variance + self.eps)
        middle = (mean * scale).to(wide)[:, :, None].expand(-1, -1, x.shape[1] // self.num_groups)
        scale = scale.to(wide)[:, :, None].expand_as(middle)
        if weight is None:
            shift = -middle
        else:
            weight, bias = weight.view(self.num_groups, -1), bias.view(self.num_groups, -1)
            scale, shift = scale * weight, torch.addcmul(bias, middle, weight, value=-1)
        vector = (*x.shape[:2], *[1] * (x.ndim - 2))
        return _scaled(x, scale.reshape(vector), shift.reshape(vector))

    def _global(self, own: Moments) -> Moments:
        session, plan = self.session, self.session.plan
        key = (self.layer, "moments")
        here = session.bands.halved(self.level)
        share = here.lengths[session.group.rank] / here.length
        if session.exact or plan.norm_rule == "sync":
            total = session.group.start_sum(own * share)
            if plan.mode == "displaced" and plan.norm_rule not in ("sync", "separate"):
                session.remember(key, total, own)
            return total.wait()
        memory = session.memories[key]
        before = memory.pending.wait()
        assert isinstance(before, Tensor) and memory.own is not None
        if plan.norm_rule == "frozen":
            return own
        session.remember(key, session.later_sum(own * share), own)
        # corrected: all bands are taken to have moved like the own one; stale: only the own one has moved.
        gain = 1.0 if plan.norm_rule == "corrected" else share
        return before + gain * (own - memory.own)


def moments_of(x: Float[Tensor, "batch channels *space"], groups: int) -> Moments:
    """Mean and mean of squares of every group, in fp64; features of 16 bits are read twice, never widened."""
    grouped = x.reshape(x.shape[0], groups, -1)
    if x.dtype in (torch.float16, torch.bfloat16):
        mean = grouped.mean(-1, dtype=torch.float32).double()
        norm = torch.linalg.vector_norm(grouped, dim=-1, dtype=torch.float32).double()
        return torch.stack([mean, norm.square() / grouped.shape[2]])
    variance, mean = (part.double() for part in torch.var_mean(grouped, dim=-1, correction=0))
    return torch.stack([mean, variance + mean.square()])


def _scaled(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x · scale + shift, computed as wide as they are and written as x is, in one pass."""
    if torch.is_grad_enabled():
        return torch.addcmul(shift, x, scale).to(x.dtype)
    return torch.addcmul(shift, x, scale, out=torch.empty_like(x))
