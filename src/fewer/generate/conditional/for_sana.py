"""CAN for our Sana: `conditioning = "adaln+can"`, time and the pooled text drive generated weights.

    can = condition_sana(transformer, ConditionPlan(rank=16))
    velocity = can(latents, timestep, text, text_mask)

Sana keeps its modulation and its attention to the text. For a new condition on a frozen Sana
see `adapter`. Merging gives an ordinary `SanaTransformer`.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fewer.generate.conditional.condition import ConditionAware, ConditionPlan, condition_aware
from fewer.generate.transformer.prepared_text import whole_if_empty
from fewer.generate.transformer.sana import SanaTransformer


class SanaCondition(nn.Module):
    """Sana's embedding of the time plus the mean of its projected text tokens."""

    def forward(
        self,
        base: SanaTransformer,
        condition: Tensor | None,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        text_mask: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Float[Tensor, "batch condition_dim"]:
        return self.embed(base, timestep, text, text_mask, guidance)

    def embed(
        self,
        base: SanaTransformer,
        timestep: Shaped[Tensor, " batch"],
        text: Float[Tensor, "batch length text_dim"],
        text_mask: Shaped[Tensor, "batch length"] | None = None,
        guidance: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch condition_dim"]:
        """What the generators read. Masked tokens don't count; a text without tokens counts whole."""
        scaled = None if guidance is None else guidance * base.params.guidance_embeds_scale
        _, time = base.time_embed(timestep.float(), scaled)
        tokens = base.caption_norm(base.caption_projection(text))
        if text_mask is None:
            return time + tokens.mean(1)
        seen = whole_if_empty(text_mask)[..., None]
        # where, not a product: what is masked may be anything, NaN included
        kept = torch.where(seen, tokens, torch.zeros_like(tokens))
        return time + kept.sum(1) / seen.sum(1)


def condition_sana(base: SanaTransformer, plan: ConditionPlan) -> ConditionAware:
    """A Sana whose patch embedding, depthwise convolutions and attention outputs follow time and text."""
    return condition_aware(base, plan, SanaCondition(), base.params.width)
