"""GroupNorm over bands: exact, or corrected by the change of the own band (DistriFusion, equation 2).

Statistics travel as (mean, mean of squares) in fp32 or better. Unlike the reference implementation the
variance is the biased one, so that the exact mode equals a single device's GroupNorm.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewer.parallel.group import Done
from fewer.parallel.session import Memory, Session

Moments = Float[Tensor, "two batch groups"]


class ParallelGroupNorm(nn.Module):
    """Shares the original's tensors."""

    def __init__(self, original: nn.GroupNorm, session: Session, layer: str) -> None:
        super().__init__()
        self.weight, self.bias = original.weight, original.bias
        self.num_groups, self.eps = original.num_groups, original.eps
        self.session, self.layer = session, layer

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *space"]:
        own, global_ = self._moments(x), None
        global_ = self._global(own)
        mean, square = global_
        variance = square - mean.square()
        own_variance = own[1] - own[0].square()
        # A corrected estimate can be negative; the own variance never is.
        variance = torch.where(variance < 0, own_variance, variance)
        grouped = x.to(mean.dtype).reshape(x.shape[0], self.num_groups, -1)
        normed = (grouped - mean[:, :, None]) * torch.rsqrt(variance[:, :, None] + self.eps)
        normed = normed.reshape(x.shape)
        if self.weight is not None:
            shape = (1, -1, *[1] * (x.ndim - 2))
            normed = normed * self.weight.to(mean.dtype).view(shape) + self.bias.to(mean.dtype).view(shape)
        return normed.to(x.dtype)

    def _moments(self, x: Tensor) -> Moments:
        wide = torch.promote_types(x.dtype, torch.float32)
        grouped = x.to(wide).reshape(x.shape[0], self.num_groups, -1)
        return torch.stack([grouped.mean(-1), grouped.square().mean(-1)])

    def _global(self, own: Moments) -> Moments:
        session, plan = self.session, self.session.plan
        if session.alone or (not session.exact and plan.norm_rule == "separate"):
            return own
        key = (self.layer, "moments")
        share = session.bands.lengths[session.group.rank] / session.bands.length
        if session.exact or plan.norm_rule == "sync":
            total = session.group.start_sum(own * share).wait()
            if plan.mode == "displaced" and plan.norm_rule not in ("sync", "separate"):
                session.memories[key] = Memory(Done(total), own)
            return total
        memory = session.memories[key]
        before = memory.pending.wait()
        assert isinstance(before, Tensor) and memory.own is not None
        if plan.norm_rule == "frozen":
            return own
        session.memories[key] = Memory(session.group.start_sum(own * share), own)
        # corrected: all bands are taken to have moved like the own one; stale: only the own one has moved.
        gain = 1.0 if plan.norm_rule == "corrected" else share
        return before + gain * (own - memory.own)
