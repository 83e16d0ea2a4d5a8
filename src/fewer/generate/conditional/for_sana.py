"""CAN for our Sana: `conditioning = "adaln+can"`, time and the pooled text drive generated weights.

    sana = ConditionedSana(condition_sana(transformer, ConditionPlan(rank=16)))
    velocity = sana(latents, timestep, text, text_mask)     # as a SanaTransformer, to train and to draw
    save_conditioned(sana, folder)                          # the transformer's files and can.safetensors

Sana keeps its modulation and its attention to the text. For a new condition on a frozen Sana
see `adapter`. `sana.network.merge(...)` gives an ordinary `SanaTransformer` for one time and text.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fewer.core.errors import FileError
from fewer.core.tensors import read_tensors, tensor_header, write_tensors
from fewer.generate.conditional.condition import ConditionAware, condition_aware
from fewer.generate.conditional.generator_files import (
    check_generators,
    fill_generators,
    generator_tensors,
    plan_facts,
    read_plan,
)
from fewer.generate.conditional.targets import ConditionPlan
from fewer.generate.transformer.params import SanaParams
from fewer.generate.transformer.prepared_text import PreparedText, whole_if_empty
from fewer.generate.transformer.sana import SanaTransformer

FORMAT, GENERATORS = "fewer-sana-can", "can.safetensors"


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
        return self.time(base, timestep, guidance) + self.pooled(base, text, text_mask)

    def time(
        self,
        base: SanaTransformer,
        timestep: Shaped[Tensor, " batch"],
        guidance: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch condition_dim"]:
        """The half of the condition that changes from step to step."""
        scaled = None if guidance is None else guidance * base.params.guidance_embeds_scale
        return base.time_embed(timestep.float(), scaled)[1]

    def pooled(
        self,
        base: SanaTransformer,
        text: Float[Tensor, "batch length text_dim"],
        text_mask: Shaped[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch condition_dim"]:
        """The half of the condition that a text gives."""
        tokens = base.caption_norm(base.caption_projection(text))
        if text_mask is None:
            return tokens.mean(1)
        seen = whole_if_empty(text_mask)[..., None]
        # where, not a product: what is masked may be anything, NaN included
        kept = torch.where(seen, tokens, torch.zeros_like(tokens))
        return kept.sum(1) / seen.sum(1)


def condition_sana(base: SanaTransformer, plan: ConditionPlan) -> ConditionAware:
    """A Sana whose patch embedding, depthwise convolutions and attention outputs follow time and text."""
    return condition_aware(base, plan, SanaCondition(), base.params.width)


@dataclass(frozen=True, slots=True)
class ConditionedText:
    """A text made ready for the blocks, and what of it drives the generators."""

    prepared: PreparedText
    pooled: Float[Tensor, "batch condition_dim"]


class ConditionedSana(nn.Module):
    """A Sana with generated weights in the form of a `SanaTransformer`: the same calls, the same shapes.

    In every step each picture's weights are generated anew from its time and text.
    """

    def __init__(self, network: ConditionAware) -> None:
        super().__init__()
        self.network = network

    @property
    def base(self) -> SanaTransformer:
        """The transformer whose weights are added to."""
        assert isinstance(self.network.base, SanaTransformer)
        return self.network.base

    @property
    def params(self) -> SanaParams:
        """The shape of the transformer."""
        return self.base.params

    @property
    def proj_out(self) -> nn.Linear:
        """The last layer: who asks for its dtype or device means the network's."""
        return self.base.proj_out

    def forward(
        self,
        latents: Float[Tensor, "batch channels lat_h lat_w"],
        timestep: Shaped[Tensor, " batch"],
        text: Float[Tensor, "batch length text_dim"],
        text_mask: Shaped[Tensor, "batch length"] | None = None,
        guidance: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch out_channels lat_h lat_w"]:
        """As `SanaTransformer.forward`."""
        return self.network(latents, timestep, text, text_mask, guidance)

    def prepare(
        self,
        text: Float[Tensor, "batch length text_dim"],
        text_mask: Shaped[Tensor, "batch length"] | None = None,
        *,
        drop: bool = True,
    ) -> ConditionedText:
        """As `SanaTransformer.prepare`."""
        prepared = self.base.prepare(text, text_mask, drop=drop).asking_all()
        return ConditionedText(prepared, self._source.pooled(self.base, text, text_mask))

    def denoise(
        self,
        latents: Float[Tensor, "batch channels lat_h lat_w"],
        timestep: Shaped[Tensor, " batch"],
        text: ConditionedText,
        guidance: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch out_channels lat_h lat_w"]:
        """As `SanaTransformer.denoise`."""
        with self.network.bound(self._source.time(self.base, timestep, guidance) + text.pooled):
            return self.base.denoise(latents, timestep, text.prepared, guidance)

    @property
    def _source(self) -> SanaCondition:
        assert isinstance(self.network.source, SanaCondition)
        return self.network.source


def save_conditioned(model: ConditionedSana, folder: Path) -> None:
    """Writes the transformer as it is without generated weights, and the generators beside it."""
    twin = model.network.static_twin()
    assert isinstance(twin, SanaTransformer)
    twin.save(folder)
    facts = {"format": FORMAT, **plan_facts(model.network.plan)}
    write_tensors(Path(folder) / GENERATORS, generator_tensors(model.network), facts)


def load_conditioned(
    folder: Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> ConditionedSana:
    """What `save_conditioned` wrote. Raises `FileError` for generators that are damaged or of other kind."""
    folder = Path(folder)
    file = folder / GENERATORS
    header, facts = tensor_header(file)
    if facts.get("format") != FORMAT:
        raise FileError(f"{GENERATORS!r} has format {facts.get('format')!r}, not {FORMAT!r}")
    plan = read_plan(facts, GENERATORS)
    base = SanaTransformer.load(folder, dtype, device)
    check_generators(base, plan, base.params.width, header, GENERATORS)
    network = condition_sana(base, plan).requires_grad_(False)
    fill_generators(network, read_tensors(file))
    return ConditionedSana(network.to(device, dtype)).eval()


def has_generators(folder: Path) -> bool:
    """Whether the transformer in this folder was trained with `adaln+can`."""
    return (Path(folder) / GENERATORS).is_file()
