"""Attention on a band: linear attention adds up states, softmax attention gathers keys and values."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d

from fewer.generate.autoencoder.blocks import LinearAttention as AutoencoderAttention
from fewer.generate.transformer.attention import attention_state, read_state
from fewer.parallel.session import Session

_FP16_LARGEST = 65504.0


class ParallelLinearAttention(nn.Module):
    """Sana's self-attention. The only thing that couples the bands is one small sum a head: exact and cheap.

    Queries are made while the sum travels.
    """

    def __init__(self, original: nn.Module, session: Session, layer: str) -> None:
        super().__init__()
        self.heads = original.heads
        self.to_q, self.to_k, self.to_v = original.to_q, original.to_k, original.to_v
        self.norm_q, self.norm_k, self.to_out = original.norm_q, original.norm_k, original.to_out
        self.session, self.layer = session, layer
        self.exact = bool(getattr(original, "exact", False))

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        counted = self.summed_over(tokens)
        key, value = self._split(self.norm_k(self.to_k(counted))), self._split(self.to_v(counted))
        state = self.session.start_state(self.layer, attention_state(key, value, self.exact))
        query = self._split(self.norm_q(self.to_q(tokens)))
        attended = read_state(query, state.wait())
        attended = rearrange(attended, "batch heads tokens dim -> batch tokens (heads dim)")
        result = self.to_out(attended.to(tokens.dtype))
        if result.dtype == torch.float16:
            result = result.clamp(-_FP16_LARGEST, _FP16_LARGEST)
        return result

    def summed_over(self, tokens: Tensor) -> Tensor:
        """Tokens whose keys and values this rank adds up: all of its own."""
        return tokens

    def _split(self, tokens: Float[Tensor, "batch tokens inner"]) -> Float[Tensor, "batch heads tokens dim"]:
        return rearrange(tokens, "batch tokens (heads dim) -> batch heads tokens dim", heads=self.heads)


class ParallelAutoencoderAttention(AutoencoderAttention):
    """DC-AE's linear attention on a band; its multi-scale convolutions are replaced like any other.

    The form by sums serves every size, since it equals the quadratic one up to rounding; deciding by the
    band's own size, as a plain copy of the layer would, is what goes wrong (distrifusion §2.4, trap a).
    """

    def __init__(self, original: nn.Module, session: Session, layer: str) -> None:
        nn.Module.__init__(self)
        self.head_dim = original.head_dim
        self.to_q, self.to_k, self.to_v = original.to_q, original.to_k, original.to_v
        self.to_qkv_multiscale = original.to_qkv_multiscale
        self.to_out, self.norm_out = original.to_out, original.norm_out
        self.session, self.layer = session, layer
        self._original = (original,)  # in a tuple, so that its tensors are not registered twice

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels h w"]:
        plain = self._original[0]
        weight = torch.cat([self.to_q.weight, self.to_k.weight, self.to_v.weight])
        qkv = conv2d(x, weight[:, :, None, None])
        qkv = torch.cat([qkv, *(projection(qkv) for projection in self.to_qkv_multiscale)], dim=1)  # pyright: ignore
        query, key, value = plain.split_heads(qkv)
        state = self.session.start_state(self.layer, plain.summarize(key, value), ones=-2).wait()
        return plain.finish(plain.read(query, state), x.shape[2], x.dtype)


def gathered_keys_values(
    session: Session,
    layer: str,
    key: Float[Tensor, "batch tokens dim"],
    value: Float[Tensor, "batch tokens dim"],
    lengths: list[int],
) -> tuple[Float[Tensor, "batch all_tokens dim"], Float[Tensor, "batch all_tokens dim"]]:
    """Keys and values of the whole image for softmax attention, in rank order and one exchange.

    `lengths` are the tokens of every rank. Displaced: the others' are those of the step before (the paper).
    """
    both = session.gathered(layer, torch.cat([key, value], dim=-1), lengths, axis=1)
    whole_key, whole_value = both.chunk(2, dim=-1)
    return whole_key, whole_value
