"""DiT, U-ViT and CaT on several devices, with or without condition-aware weights (CAN).

Softmax attention gathers everybody's keys and values (fresh, or in displaced mode those of the step before),
CaT's linear attention adds up its state, depthwise convolutions get their neighbours' rows. The class and
time tokens are on every rank and are counted once. Weights made from the condition are made on every rank.
"""

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from fewer.core.errors import ConfigError
from fewer.core.modules import replace_modules
from fewer.generate.conditional.bricks import FeedForward, SoftmaxAttention
from fewer.generate.conditional.cat import CaT
from fewer.generate.conditional.condition import ConditionAware
from fewer.generate.conditional.dit import DiT
from fewer.generate.conditional.u_vit import UViT
from fewer.generate.transformer.attention import LinearAttention
from fewer.generate.transformer.feed_forward import MixFFN
from fewer.parallel.agreement import Agreement, picture_facts
from fewer.parallel.attach import structural_copy
from fewer.parallel.attention import ParallelLinearAttention, gathered_keys_values
from fewer.parallel.bands import cut
from fewer.parallel.convolution import ParallelConv2d, ParallelMixFFN, extend
from fewer.parallel.group import Group
from fewer.parallel.halves import Halves, halved
from fewer.parallel.kept import kept_widths, require_kept
from fewer.parallel.plan import ParallelPlan
from fewer.parallel.session import Session


def parallel_conditional(original: DiT | UViT | CaT, plan: ParallelPlan, group: Group) -> nn.Module:
    """Shares the original's tensors, under the same names; whole latents in and out on every rank."""
    model = structural_copy(original)
    patches, halves = halved(plan, group)
    session = Session(patches, plan)
    extra = 2 if isinstance(original, UViT) or original.params.tokens else 0
    side = original.params.size // original.params.patch

    def build(name: str, module: nn.Module) -> nn.Module | None:
        if isinstance(module, SoftmaxAttention):
            return BandSoftmaxAttention(module, session, name, extra, side)
        if isinstance(module, LinearAttention):
            return BandLinearAttention(module, session, name, extra)
        if isinstance(module, FeedForward) and module.dwconv is not None:
            return BandFeedForward(module, session, name, side)
        if isinstance(module, MixFFN):
            return ParallelMixFFN(module, session, name)
        return ParallelConv2d(module, session, name) if name == "final_layer" and _convolves(module) else None

    replace_modules(model, build)
    session.widths = kept_widths(model)
    band = {DiT: _dit_band, UViT: _u_vit_band, CaT: _cat_band}[type(original)]
    return BandNetwork(model, session, band, Agreement(group), halves)


def parallel_conditioned(
    original: nn.Module, plan: ParallelPlan, spread: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    """A network with generated weights: its base is spread, its generators stay on every rank.

    Raises `ConfigError` for guidance on two halves: the weights are made for all samples at once.
    """
    if plan.guidance == "split":
        raise ConfigError(
            "condition-aware networks make the weights of all samples at once; guidance=batched"
        )
    model = structural_copy(original)
    network = model if isinstance(model, ConditionAware) else model.network
    assert isinstance(network, ConditionAware)
    network.base = spread(network.base)
    return model


class BandNetwork(nn.Module):
    """A class-conditional network to its callers; the tensors keep their names."""

    def __init__(
        self,
        model: nn.Module,
        session: Session,
        band: Callable[..., Tensor],
        agreement: Agreement,
        halves: Halves | None,
    ) -> None:
        super().__init__()
        self.__dict__["model"] = model  # not a child: its children stand here under their own names
        for name, child in model.named_children():
            self.add_module(name, child)
        for name, parameter in model.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        self.params, self.session, self._band, self._halves = model.params, session, band, halves
        self._agreement = agreement

    def forward(
        self, latents: Float[Tensor, "batch channels height width"], timestep: Tensor, labels: Tensor
    ) -> Float[Tensor, "batch out_channels height width"]:
        time = self.session.read_time(timestep)
        self._agreement.check(picture_facts(latents), time)
        halves = self._halves if self._halves is not None and self._halves.splits(len(latents)) else None
        if halves is not None:
            asked = (latents, timestep, labels)
            latents, timestep, labels = halves.take(asked, len(latents))
        session, rank = self.session, self.session.group.rank
        bands = cut(latents.shape[2], session.group.size, self.params.patch)
        session.begin_step(time, bands, 2, len(latents), labels)
        tokens = latents.shape[2] * latents.shape[3] // int(self.params.patch) ** 2
        require_kept(session, session.widths, lambda _: tokens, len(latents), latents)
        own = latents.narrow(2, bands.start(rank), bands.lengths[rank])
        velocity = self._band(self.model, session, own, timestep, labels)
        session.end_step()
        whole = session.group.start_gather(velocity, bands.lengths, 2).wait()
        return whole if halves is None else halves.join(whole)

    def condition(self, timestep: Tensor, labels: Tensor) -> Float[Tensor, "batch condition_dim"]:
        """As the network's own: what weights are generated from."""
        return self.model.condition(timestep, labels)  # pyright: ignore[reportCallIssue]


def _dit_band(model: DiT, session: Session, own: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
    time, label = model.t_embedder(timestep), model.y_embedder(labels)
    extra = 2 if model.params.tokens else 0
    tokens = _patches(model.x_embedder.proj, own) + _positions(model, session, model.pos_embed, 0)
    if extra:
        tokens = torch.cat([label[:, None], time[:, None], tokens], 1)
    for block in model.blocks:
        tokens = block(tokens, time + label, extra)
    return _to_band(model.final_layer(tokens[:, extra:], time + label), model.params.patch, own)


def _cat_band(model: CaT, session: Session, own: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
    time, label = model.t_embedder(timestep), model.y_embedder(labels)
    extra, patch = (2 if model.params.tokens else 0), model.params.patch
    tokens = _patches(model.patch_embed.proj, own) + _positions(model, session, model.pos_embed, 0)
    if extra:
        tokens = torch.cat([label[:, None], time[:, None], tokens], 1)
    for block in model.blocks:
        tokens = block(tokens, time + label, extra, (own.shape[2] // patch, own.shape[3] // patch))
    return _to_band(model.final_layer(tokens[:, extra:], time + label), patch, own)


def _u_vit_band(model: UViT, session: Session, own: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
    time, label = model._embed(timestep, labels)
    tokens = torch.cat([label[:, None], time[:, None], _patches(model.patch_embed.proj, own)], 1)
    tokens = tokens + _positions(model, session, model.pos_embed, 2)
    kept = []
    for block in model.in_blocks:
        tokens = block(tokens)
        kept.append(tokens)
    tokens = model.mid_block(tokens)
    for block in model.out_blocks:
        tokens = block(tokens, kept.pop())
    return model.final_layer(_to_band(model.decoder_pred(model.norm(tokens))[:, 2:], model.params.patch, own))


def _patches(projection: nn.Module, own: Tensor) -> Float[Tensor, "batch tokens dim"]:
    return rearrange(projection(own), "b d h w -> b (h w) d")


def _positions(model: Any, session: Session, positions: Tensor, extra: int) -> Tensor:
    """Of the extra tokens, and of this band's rows."""
    patch, side = model.params.patch, model.params.size // model.params.patch
    start, rows = session.band_start() // patch, session.bands.lengths[session.group.rank] // patch
    own = positions[:, extra + start * side : extra + (start + rows) * side]
    return torch.cat([positions[:, :extra], own], 1)


def _to_band(patches: Tensor, patch: int, own: Tensor) -> Tensor:
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", w=own.shape[3] // patch, p=patch, q=patch)


def _convolves(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1


class BandSoftmaxAttention(nn.Module):
    """Queries of the band; keys and values of all bands, and of the extra tokens once."""

    def __init__(
        self, original: SoftmaxAttention, session: Session, layer: str, extra: int, side: int
    ) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = original.heads, original.qkv, original.proj
        self.session, self.layer, self.extra, self.side = session, layer, extra, side
        self.kept_width = int(original.qkv.out_features) * 2 // 3

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        query, key, value = self.qkv(tokens).chunk(3, dim=2)
        session, extra = self.session, self.extra
        rows = sum(session.bands.lengths) // self.side  # of latents, for a row of tokens
        lengths = [length // rows * self.side for length in session.bands.lengths]
        keys, values = gathered_keys_values(session, self.layer, key[:, extra:], value[:, extra:], lengths)
        attended = scaled_dot_product_attention(
            *(
                rearrange(part, "b n (h d) -> b h n d", h=self.heads)
                for part in (
                    query, torch.cat([key[:, :extra], keys], 1), torch.cat([value[:, :extra], values], 1)
                )
            )
        )  # fmt: skip
        return self.proj(rearrange(attended, "b h n d -> b n (h d)"))


class BandLinearAttention(ParallelLinearAttention):
    """Linear attention where the first tokens are on every rank: the first rank alone adds them up."""

    def __init__(self, original: LinearAttention, session: Session, layer: str, extra: int) -> None:
        super().__init__(original, session, layer)
        self.extra = extra

    def summed_over(self, tokens: Tensor) -> Tensor:
        first = self.session.group.rank == 0 or self.session.alone
        return tokens if first else tokens[:, self.extra :]


class BandFeedForward(nn.Module):
    """The depthwise convolution between the linear layers gets a row of each neighbour."""

    def __init__(self, original: FeedForward, session: Session, layer: str, side: int) -> None:
        super().__init__()
        self.fc1, self.dwconv, self.fc2 = original.fc1, original.dwconv, original.fc2
        self.approximate = original.approximate
        self.session, self.layer, self.side = session, layer, side

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], extra: int = 0
    ) -> Float[Tensor, "batch tokens dim"]:
        hidden = self.fc1(tokens)
        image = rearrange(hidden[:, extra:], "b (h w) d -> b d h w", w=self.side)
        rows = self.session.start_rows(self.layer, image, 1).wait()
        assert self.dwconv is not None  # a feed-forward without one has nothing to exchange
        mixed = self.dwconv(extend(image, rows, 1, 2)).narrow(2, 1, image.shape[2])
        hidden = torch.cat([hidden[:, :extra], rearrange(mixed, "b d h w -> b (h w) d")], 1)
        return self.fc2(gelu(hidden, approximate=self.approximate))
