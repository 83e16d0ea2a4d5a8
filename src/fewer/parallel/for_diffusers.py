"""diffusers' SDXL U-Net, PixArt and FLUX transformers on several devices, in DistriFusion's way.

Softmax attention needs everybody's keys and values: fresh in `sync` mode, those of the step before in
`displaced` mode. Queries, cross-attention and everything per token stay on their band. The models are
changed from outside, by replacing submodules and attention processors of a copy that shares all tensors.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fewer.core.errors import ConfigError
from fewer.core.modules import replace_modules, set_module
from fewer.parallel.agreement import Agreement, picture_facts
from fewer.parallel.attach import structural_copy
from fewer.parallel.attention import gathered_keys_values
from fewer.parallel.bands import cut, cut_ragged
from fewer.parallel.convolution import ParallelConv2d
from fewer.parallel.group import Group
from fewer.parallel.group_norm import ParallelGroupNorm
from fewer.parallel.halves import Halves, halved, output_of, with_output
from fewer.parallel.kept import kept_widths, require_kept, unet_level, unet_tokens
from fewer.parallel.plan import ParallelPlan
from fewer.parallel.session import Session

RESIDUALS = (
    "down_block_additional_residuals", "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)  # fmt: skip
"""What others add to a U-Net's features, by keyword."""


def parallel_diffusers(original: nn.Module, plan: ParallelPlan, group: Group) -> nn.Module:
    """Shares the original's tensors; takes and gives whole latents on every rank, like the original."""
    model = structural_copy(original)
    patches, halves = halved(plan, group)
    session = Session(patches, plan)
    model.band_session = session  # pyright: ignore[reportArgumentType]
    model.band_agreement = Agreement(group)  # pyright: ignore[reportArgumentType]
    if halves is not None:
        split_samples(model, halves)
    model.register_forward_pre_hook(begin_step, with_kwargs=True)
    kind = type(original).__name__
    if patches.size == 1:  # one device keeps its own layers
        return model
    if kind == "UNet2DConditionModel":
        model.register_forward_pre_hook(own_residuals, with_kwargs=True)
        _parallel_unet(model, session)
    elif kind == "PixArtTransformer2DModel":
        _parallel_tokens(model, session, entry="pos_embed", exit_="proj_out")
        _gather_self_attention(model, session)
    else:
        _parallel_tokens(model, session, entry="x_embedder", exit_="proj_out")
        for name, module in model.named_modules():
            if type(module).__name__ == "FluxAttention":
                module.set_processor(BandFluxAttention(session, name))
                module.kept_width = 2 * module.inner_dim  # pyright: ignore
    session.widths = kept_widths(model)
    return model


def split_samples(model: nn.Module, halves: Halves) -> None:
    """Half of the ranks run the model on the first half of the samples, the others on the second."""

    shared_out = [False]

    def take(module: nn.Module, arguments: tuple, options: dict) -> tuple[tuple, dict] | None:
        samples = len(sample_of(arguments, options))
        shared_out[0] = halves.splits(samples)
        if not shared_out[0]:
            return None
        return halves.take(arguments, samples), halves.take(options, samples)

    def join(module: nn.Module, arguments: tuple, output: Any) -> Any:
        return with_output(output, halves.join(output_of(output))) if shared_out[0] else None

    model.register_forward_pre_hook(take, with_kwargs=True)
    model.register_forward_hook(join)


def sample_of(arguments: tuple, options: dict) -> Tensor:
    """What is denoised, however it was handed over."""
    sample = arguments[0] if arguments else options.get("sample", options.get("hidden_states"))
    assert isinstance(sample, Tensor)
    return sample


def begin_step(module: nn.Module, arguments: tuple, options: dict) -> None:
    """Before each forward pass: reads the time and cuts the picture."""
    session, name = module.band_session, type(module).__name__
    assert isinstance(session, Session)
    if not session.counting:
        return
    sample, time = sample_of(arguments, options), options.get("timestep")
    if time is None:  # by position: second for the U-Net, third for PixArt, fourth for FLUX
        time = arguments[{"UNet2DConditionModel": 1, "PixArtTransformer2DModel": 2}.get(name, 3)]
    count_step(module, sample, time, text_of(name, arguments, options))


def text_of(name: str, arguments: tuple, options: dict) -> Tensor | None:
    """What the picture is to show, however it was handed over: third for the U-Net, else second."""
    place = 2 if name == "UNet2DConditionModel" else 1
    text = options.get("encoder_hidden_states", arguments[place] if len(arguments) > place else None)
    return text if isinstance(text, Tensor) else None


def count_step(module: nn.Module, sample: Tensor, time: Tensor | float, text: Tensor | None = None) -> None:
    """Cuts the picture that `sample` is about and counts the step."""
    session, agreement, name = module.band_session, module.band_agreement, type(module).__name__
    assert isinstance(session, Session) and isinstance(agreement, Agreement)
    now = session.read_time(time)
    agreement.check(picture_facts(sample), now)
    if session.group.size == 1:
        return
    if name == "UNet2DConditionModel":
        levels = len(module.config.block_out_channels)  # pyright: ignore
        bands, axis = cut_ragged(sample.shape[2], session.group.size, 2 ** (levels - 1)), 2
    elif name == "PixArtTransformer2DModel":
        patch = int(module.config.patch_size)  # pyright: ignore
        bands, axis = cut((sample.shape[2] // patch) * (sample.shape[3] // patch), session.group.size), 1
    else:
        bands, axis = cut(sample.shape[1], session.group.size), 1
    session.begin_step(now, bands, axis, len(sample), text)
    if name == "UNet2DConditionModel":
        tokens_at = unet_tokens(levels, *sample.shape[2:])
    else:
        tokens_at = lambda _: bands.length  # noqa: E731
    require_kept(session, session.widths, tokens_at, len(sample), sample)


def own_residuals(module: nn.Module, arguments: tuple, options: dict) -> tuple[tuple, dict]:
    """What a ControlNet or a T2I adapter adds is about the whole picture: this rank's rows of it."""
    session = module.band_session
    assert isinstance(session, Session)

    def own(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return None if value is None else type(value)(own(each) for each in value)
        levels = range(len(module.config.block_out_channels))  # pyright: ignore
        whole = [-(-session.bands.length // 2**level) for level in levels]
        bands = session.bands.halved(whole.index(value.shape[2]))
        return value.narrow(2, bands.start(session.group.rank), bands.lengths[session.group.rank])

    return arguments, options | {name: own(options[name]) for name in RESIDUALS if name in options}


def _parallel_unet(model: nn.Module, session: Session) -> None:
    levels = len(model.config.block_out_channels)  # pyright: ignore

    def build(name: str, module: nn.Module) -> nn.Module | None:
        if name == "conv_in":
            return BandEntry(module, session, axis=2)
        if isinstance(module, nn.GroupNorm):
            return ParallelGroupNorm(module, session, name, unet_level(name, levels))
        if isinstance(module, nn.Conv2d) and max(module.padding) > 0:  # pyright: ignore
            band = ParallelConv2d(module, session, name)
            return BandExit(band, session, axis=2) if name == "conv_out" else band
        return None

    replace_modules(model, build)
    _gather_self_attention(model, session, levels)


def _parallel_tokens(model: nn.Module, session: Session, entry: str, exit_: str) -> None:
    set_module(model, entry, BandEntry(model.get_submodule(entry), session, axis=1))
    set_module(model, exit_, BandExit(model.get_submodule(exit_), session, axis=1))


def _gather_self_attention(model: nn.Module, session: Session, levels: int = 1) -> None:
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "Attention" and name.endswith("attn1"):
            if getattr(module, "fused_projections", False):
                raise ConfigError(
                    "this model's query, key and value projections are fused, and bands need keys and values "
                    "apart; call unfuse_qkv_projections() before parallelize"
                )
            level = unet_level(name, levels)
            both = KeysValuesOfAll(module.to_k, module.to_v, session, name, level)
            module.to_k = both
            module.to_v = ValuesOfAll(both)


class BandEntry(nn.Module):
    """Runs the first layer on the whole input, which every rank has, and keeps the own band of it."""

    def __init__(self, first: nn.Module, session: Session, axis: int) -> None:
        super().__init__()
        self.first, self.session, self.axis = first, session, axis

    def forward(self, whole: Tensor) -> Tensor:
        features = self.first(whole)
        bands, rank = self.session.bands, self.session.group.rank
        return features.narrow(self.axis, bands.start(rank), bands.lengths[rank]).contiguous()


class BandExit(nn.Module):
    """Runs the last layer on the own band and joins all bands."""

    def __init__(self, last: nn.Module, session: Session, axis: int) -> None:
        super().__init__()
        self.last, self.session, self.axis = last, session, axis

    def forward(self, band: Tensor) -> Tensor:
        out = self.last(band)
        self.session.end_step()
        return self.session.group.start_gather(out, self.session.bands.lengths, self.axis).wait()


class KeysValuesOfAll(nn.Module):
    """Stands for `to_k`: makes keys and values of the band, exchanges both at once, gives all keys."""

    def __init__(
        self, to_k: nn.Module, to_v: nn.Module, session: Session, layer: str, level: int = 0
    ) -> None:
        super().__init__()
        self.keys, self.values = to_k, to_v
        self.session, self.layer, self.level = session, layer, level
        self.kept_width = int(to_k.out_features) + int(to_v.out_features)  # pyright: ignore
        self.waiting: Tensor | None = None

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch all_tokens inner"]:
        lengths = tokens_of_ranks(self.session, tokens.shape[1], self.level)
        key, self.waiting = gathered_keys_values(
            self.session, self.layer, self.keys(tokens), self.values(tokens), lengths
        )
        return key


class ValuesOfAll(nn.Module):
    """Stands for `to_v`: hands out what `KeysValuesOfAll` has fetched."""

    def __init__(self, both: KeysValuesOfAll) -> None:
        super().__init__()
        self._both = (both,)  # in a tuple, so that its tensors are not registered twice

    def forward(self, tokens: Tensor) -> Tensor:
        values, self._both[0].waiting = self._both[0].waiting, None
        assert values is not None, "the attention asked for values before keys"
        return values


def tokens_of_ranks(session: Session, own: int, level: int = 0) -> list[int]:
    """Tokens of every rank in a layer where this rank has `own` and the picture was halved `level` times."""
    lengths = session.bands.halved(level).lengths
    across = own // lengths[session.group.rank]
    return [across * length for length in lengths]


class BandFluxAttention:
    """FLUX's joint attention: text tokens are on every rank, image tokens on their band."""

    def __init__(self, session: Session, layer: str) -> None:
        self.session, self.layer = session, layer

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Sequence[Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        joint = encoder_hidden_states is not None
        texts = encoder_hidden_states.shape[1] if joint else hidden_states.shape[1] - self._own_images()
        query, key, value = (
            self._heads(attn, layer(hidden_states)) for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = attn.norm_q(query), attn.norm_k(key)
        if joint:
            text = encoder_hidden_states
            more = [
                self._heads(attn, layer(text))
                for layer in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            ]
            query = torch.cat([attn.norm_added_q(more[0]), query], dim=1)
            key = torch.cat([attn.norm_added_k(more[1]), key], dim=1)
            value = torch.cat([more[2], value], dim=1)
        query, key = self._turn(query, texts, image_rotary_emb), self._turn(key, texts, image_rotary_emb)
        key, value = self._of_all(key, value, texts)
        attended = scaled_dot_product_attention(
            *(tensor.transpose(1, 2) for tensor in (query, key, value)), attn_mask=attention_mask
        )
        attended = attended.transpose(1, 2).flatten(2).to(query.dtype)
        if not joint:
            return attended
        text_part, image_part = attended[:, :texts], attended[:, texts:]
        image_part = attn.to_out[1](attn.to_out[0](image_part.contiguous()))
        return image_part, attn.to_add_out(text_part.contiguous())

    def _own_images(self) -> int:
        return self.session.bands.lengths[self.session.group.rank]

    def _heads(self, attn: nn.Module, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (-1, attn.head_dim))

    def _turn(self, tokens: Tensor, texts: int, rotary: Sequence[Tensor] | None) -> Tensor:
        """Rotary positions of the text and of the own image tokens, out of those of all."""
        if rotary is None:
            return tokens
        from diffusers.models.embeddings import apply_rotary_emb

        start = texts + self.session.band_start()
        own = [torch.cat([part[:texts], part[start : start + self._own_images()]]) for part in rotary]
        return apply_rotary_emb(tokens, tuple(own), sequence_dim=1)  # pyright: ignore

    def _of_all(self, key: Tensor, value: Tensor, texts: int) -> tuple[Tensor, Tensor]:
        heads = key.shape[2]
        images = [tensor[:, texts:].flatten(2) for tensor in (key, value)]
        lengths = list(self.session.bands.lengths)
        all_keys, all_values = gathered_keys_values(self.session, self.layer, *images, lengths)
        return tuple(  # pyright: ignore
            torch.cat([own[:, :texts], whole.unflatten(-1, (heads, -1))], dim=1)
            for own, whole in ((key, all_keys), (value, all_values))
        )
