"""DC-AE through the kernels, channels last in memory: a norm is a reduction over one contiguous row.

Every block keeps its interface (batch, channels, height, width) and its layers' names; only strides and
kernels differ, so tiling and saving work on it unchanged. Convolutions carry what follows them (activation,
or norm and sum), a way up is four small convolutions of the small map, linear attention reads its projection
in place. Small pictures are decoded in one CUDA graph, large ones in strips. Blocks with batch norm keep
their own forward.
"""

from collections.abc import Hashable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fewer.generate.autoencoder.blocks import (
    ATTENTION_EPSILON,
    EPSILON,
    ChannelRMSNorm,
    EfficientViTBlock,
    Image,
    LinearAttention,
    ResBlock,
    UpBlock,
)
from fewer.generate.autoencoder.dc_ae import DCAutoencoder, Decoder
from fewer.generate.autoencoder.tiling import decode_in_strips
from fewer.generate.engine.graphs import StepGraphs
from fewer.generate.engine.layouts import lay_out
from fewer.generate.engine.products import is_dense, join_weights
from fewer.generate.engine.shell import M, shell
from fewer.kernels.aggregate import aggregate
from fewer.kernels.convolution import convolution, doubling_convolution, doubling_phases
from fewer.kernels.dense import activated_linear
from fewer.kernels.depthwise import depthwise_gated
from fewer.kernels.linear_attention import linear_attention
from fewer.kernels.norms import Activation, rms_norm_add
from fewer.kernels.resample import upsample_add

Rows = Float[Tensor, "batch height width channels"]
Heads = Float[Tensor, "batch tokens heads head_dim"]

# Below, launching the kernels would take as long as running them; above, a graph's memory would be large.
MOST_LATENTS_IN_A_GRAPH = 2048
# From this size the whole map of the shallow stages would take more memory than the rest of the model.
LEAST_LATENTS_IN_STRIPS = 8192
STRIP = 1024
"""Lines of the picture in a strip."""


class FusedResBlock(ResBlock):
    """x + norm(conv(act(conv(x)))) as two convolutions."""

    def forward(self, x: Image) -> Image:
        if torch.is_grad_enabled() or not isinstance(self.norm, ChannelRMSNorm):
            return super().forward(x)
        rows = _to_rows(x)
        hidden = convolution(rows, self.conv1.weight, self.conv1.bias, _kind(self.act))
        norm = (self.norm.weight, self.norm.bias)
        return _to_image(convolution(hidden, self.conv2.weight, norm=norm, residual=rows))


class FusedEfficientViTBlock(EfficientViTBlock):
    """Attention and gated convolution on rows; the streaming parts that tiling uses stay as they are."""

    def forward(self, x: Image) -> Image:
        attention, gated = self.attn, self.conv_out
        layers = (attention.to_q, attention.to_out, gated.conv_inverted, gated.conv_point)
        fused = isinstance(attention.norm_out, ChannelRMSNorm) and all(map(is_dense, layers))
        if torch.is_grad_enabled() or not fused:
            return super().forward(x)
        rows = _to_rows(x)
        rows = _norm_add(attention.norm_out, attend(self, rows), rows)
        mixed = functional.linear(self.mix(rows), _matrix(gated.conv_point))
        return _to_image(_norm_add(gated.norm, mixed, rows))

    def widen(self, rows: Rows) -> Float[Tensor, "batch height width wide"]:
        """The 1x1 convolution before the depthwise one, and its SiLU."""
        layer = self.conv_out.conv_inverted
        hidden = activated_linear(rows.flatten(0, 2), _matrix(layer), layer.bias, "silu")
        return hidden.view(*rows.shape[:3], -1)

    def mix(self, rows: Rows) -> Float[Tensor, "batch height width half_wide"]:
        """The part of the gated convolution that looks at neighbours; patch parallelism overrides it."""
        depth = self.conv_out.conv_depth
        assert depth.bias is not None
        return depthwise_gated(self.widen(rows), depth.weight[:, 0], depth.bias)

    def aggregated(self, joint: Rows, scale: int) -> Rows:
        """One scale's neighbourhood aggregation of q, k and v; patch parallelism overrides it."""
        layer = self.attn.to_qkv_multiscale[scale]
        return aggregate(joint, layer.proj_in.weight[:, 0], _matrix(layer.proj_out))

    def read_pixels(self, query: Heads, key: Heads, value: Heads, part: int) -> Heads:
        """Linear attention of one scale; patch parallelism overrides it, to add the states of all bands."""
        return linear_attention(query, key, value, ATTENTION_EPSILON)


class FusedUpBlock(UpBlock):
    """Double the resolution; the shortcut's repeated tensor is never made."""

    def forward(self, x: Image) -> Float[Tensor, "batch channels_out double_h double_w"]:
        if torch.is_grad_enabled() or not self.shortcut:
            return super().forward(x)
        rows = _to_rows(x)
        if self.kind == "interpolate":
            return _to_image(doubling_convolution(rows, self.phases(), self.conv.bias))
        return _to_image(upsample_add(rows, _to_rows(self.conv(_to_image(rows))), True))

    def phases(self) -> Float[Tensor, "4 channels_out taps"]:
        """The convolution's weight as `doubling_convolution` takes it, made again when it changes."""
        weight = self.conv.weight
        key = _version(weight)
        known = self.__dict__.get("_phases")
        if known is None or known[0] != key:
            with torch.inference_mode(False), torch.no_grad():
                known = self.__dict__["_phases"] = (key, doubling_phases(weight.detach(), True))
        return known[1]


class FusedDecoder(Decoder):
    """The decoder with its last norm and activation in one pass, as a graph or in strips by its size."""

    graphs: StepGraphs

    def forward(
        self, latents: Float[Tensor, "batch channels lat_h lat_w"]
    ) -> Float[Tensor, "batch colours height width"]:
        area = latents.shape[0] * latents.shape[2] * latents.shape[3]
        if torch.is_grad_enabled() or MOST_LATENTS_IN_A_GRAPH < area < LEAST_LATENTS_IN_STRIPS:
            return super().forward(latents)
        if area >= LEAST_LATENTS_IN_STRIPS:
            return decode_in_strips(self, latents, STRIP)
        if not latents.is_cuda:
            return super().forward(latents)
        # A graph reads weights where they lie, but the phases of an up block are made from its weight.
        ups = (block for block in self.up_blocks.modules() if isinstance(block, FusedUpBlock))
        version = (_version(self.conv_in.weight), *(_version(block.conv.weight) for block in ups))
        return self.graphs([latents], [], None, version)

    def without_choice(
        self, latents: Float[Tensor, "batch channels lat_h lat_w"]
    ) -> Float[Tensor, "batch colours height width"]:
        """All of it at once, as it comes."""
        return super().forward(latents)

    def to_image(self, x: Float[Tensor, "batch width_0 height width"]) -> Float[Tensor, "batch channels h w"]:
        if torch.is_grad_enabled():
            return super().to_image(x)
        norm, kind = self.norm_out, _kind(self.act)
        rows = rms_norm_add(_to_rows(x), norm.weight, norm.bias, None, kind, EPSILON)
        return self.conv_out(_to_image(rows))


def fuse_autoencoder(original: DCAutoencoder) -> DCAutoencoder:
    """The same autoencoder, its blocks replaced by fused ones and its convolutions channels last.

    Convolution weights are the original's own parameters, laid out anew in place (same values and names).
    """
    model = shell(DCAutoencoder, original)
    model.encoder = _fuse_tree(original.encoder, original.encoder.__class__)
    model.decoder = _fuse_tree(original.decoder, FusedDecoder)
    model.decoder.graphs = StepGraphs(model.decoder.without_choice, limit=2)
    return model


def attend(block: FusedEfficientViTBlock, rows: Rows) -> Rows:
    """All heads and scales of DC-AE's linear attention, output projection included."""
    attention = block.attn
    batch, height, width, _ = rows.shape
    joint = functional.linear(rows, _joint_weight(attention))
    parts = [joint, *(block.aggregated(joint, scale) for scale in range(len(attention.to_qkv_multiscale)))]
    attended = []
    for index, part in enumerate(parts):
        # Runs of 3 · head_dim channels hold q, k and v of one head.
        heads = part.reshape(batch, height * width, -1, 3, attention.head_dim)
        query, key, value = heads.unbind(3)
        attended.append(block.read_pixels(query, key, value, index).flatten(2))
    merged = attended[0] if len(attended) == 1 else torch.cat(attended, dim=2)
    return functional.linear(merged.view(batch, height, width, -1), attention.to_out.weight)


_FUSED: dict[type[nn.Module], type[nn.Module]] = {
    ResBlock: FusedResBlock,
    EfficientViTBlock: FusedEfficientViTBlock,
    UpBlock: FusedUpBlock,
}


def _fuse_tree(original: nn.Module, cls: type[M]) -> M:
    module = shell(cls, original)
    for name, child in original._modules.items():
        if child is not None:
            module._modules[name] = _fuse_tree(child, _FUSED.get(type(child), type(child)))
    if type(module) is nn.Conv2d:
        lay_out(module)
    return module


def _joint_weight(attention: LinearAttention) -> Float[Tensor, "outputs dim"]:
    """q, k and v one below the other; joined once, later recognised by their places in memory."""
    weights = [layer.weight for layer in (attention.to_q, attention.to_k, attention.to_v)]
    first, size = weights[0], weights[0].numel()
    shared = len({weight.untyped_storage().data_ptr() for weight in weights}) == 1
    if not shared or [weight.storage_offset() for weight in weights] != [0, size, 2 * size]:
        with torch.inference_mode(False):
            return join_weights((attention.to_q, attention.to_k, attention.to_v))
    return first.detach().as_strided((3 * first.shape[0], first.shape[1]), first.stride())


def _norm_add(norm: nn.Module, rows: Rows, residual: Rows) -> Rows:
    assert isinstance(norm, ChannelRMSNorm)
    return rms_norm_add(rows, norm.weight, norm.bias, residual, "none", EPSILON)


def _version(weight: Tensor) -> Hashable:
    """Differs when the weight does."""
    return (weight.data_ptr(), weight.dtype, 0 if weight.is_inference() else weight._version)


def _kind(act: object) -> Activation:
    return "relu" if act is functional.relu else "silu"


def _matrix(layer: nn.Conv2d) -> Float[Tensor, "outputs dim"]:
    return layer.weight.flatten(1)


def _to_rows(x: Image) -> Rows:
    return x.permute(0, 2, 3, 1).contiguous()


def _to_image(rows: Rows) -> Image:
    return rows.permute(0, 3, 1, 2)
