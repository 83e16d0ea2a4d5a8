"""GroupNorm over bands: exact, or corrected by the change of the own band (DistriFusion, equation 2).

Statistics travel as (mean, mean of squares) in fp32 or better. Unlike the reference implementation the
variance is the biased one, so that the exact mode equals a single device's GroupNorm.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

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
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        own = self._moments(wide)
        mean, square = self._global(own)
        variance = square - mean.square()
        own_variance = own[1] - own[0].square()
        # A corrected estimate can be negative; the own variance never is.
        variance = torch.where(variance < 0, own_variance, variance)
        scale = torch.rsqrt(variance + self.eps).repeat_interleave(x.shape[1] // self.num_groups, dim=1)
        middle = mean.repeat_interleave(x.shape[1] // self.num_groups, dim=1)
        if self.weight is None:
            shift = -middle * scale
        else:
            scale = scale * self.weight.to(wide.dtype)
            shift = self.bias.to(wide.dtype) - middle * scale
        vector = (*scale.shape, *[1] * (x.ndim - 2))
        return torch.addcmul(shift.view(vector), wide, scale.view(vector)).to(x.dtype)

    def _moments(self, wide: Tensor) -> Moments:
        grouped = wide.reshape(wide.shape[0], self.num_groups, -1)
        variance, mean = torch.var_mean(grouped, dim=-1, correction=0)
        return torch.stack([mean, variance + mean.square()])

    def _global(self, own: Moments) -> Moments:
        session, plan = self.session, self.session.plan
        if session.alone or (not session.exact and plan.norm_rule == "separate"):
            return own
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
