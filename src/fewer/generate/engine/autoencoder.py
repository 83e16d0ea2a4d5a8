"""DC-AE through the kernels, channels last in memory: a norm is a reduction over one contiguous row.

Every block keeps its interface (batch, channels, height, width) and its layers' names; only strides and
kernels differ, so tiling and saving work on it unchanged. Norm, activation and residual are one pass, the
shortcut of an up block is index arithmetic inside its sum, linear attention reads its projection in place.
Blocks with batch norm keep their own forward.
"""

from collections.abc import Callable

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
from fewer.generate.engine.products import is_dense, join_weights
from fewer.generate.engine.shell import M, shell
from fewer.kernels.depthwise import depthwise_gated
from fewer.kernels.linear_attention import linear_attention_apply, linear_attention_state
from fewer.kernels.norms import Activation, rms_norm_add
from fewer.kernels.resample import upsample_add

Rows = Float[Tensor, "batch height width channels"]
State = Float[Tensor, "batch heads head_dim_and_one head_dim"]


class FusedResBlock(ResBlock):
    """x + norm(conv(act(conv(x)))) with the norm and the sum in one pass."""

    def forward(self, x: Image) -> Image:
        if torch.is_grad_enabled() or not isinstance(self.norm, ChannelRMSNorm):
            return super().forward(x)
        hidden = activate(self.conv1(channels_last(x)), self.act)
        return _to_image(_norm_add(self.norm, _to_rows(self.conv2(hidden)), _to_rows(x)))


class FusedEfficientViTBlock(EfficientViTBlock):
    """Attention and gated convolution on rows; the streaming parts that tiling uses stay as they are."""

    def forward(self, x: Image) -> Image:
        attention, gated = self.attn, self.conv_out
        layers = (attention.to_q, attention.to_out, gated.conv_inverted, gated.conv_point)
        fused = isinstance(attention.norm_out, ChannelRMSNorm) and all(map(is_dense, layers))
        if torch.is_grad_enabled() or not fused:
            return super().forward(x)
        rows = _to_rows(x)
        rows = _norm_add(attention.norm_out, attend(attention, rows, self.whole_state), rows)
        mixed = functional.linear(self.mix(rows), _matrix(gated.conv_point))
        return _to_image(_norm_add(gated.norm, mixed, rows))

    def widen(self, rows: Rows) -> Float[Tensor, "batch height width wide"]:
        """The 1x1 convolution before the depthwise one, and its SiLU."""
        layer = self.conv_out.conv_inverted
        return functional.silu(functional.linear(rows, _matrix(layer), layer.bias), inplace=True)

    def mix(self, rows: Rows) -> Float[Tensor, "batch height width half_wide"]:
        """The part of the gated convolution that looks at neighbours; patch parallelism overrides it."""
        depth = self.conv_out.conv_depth
        assert depth.bias is not None
        return depthwise_gated(self.widen(rows), depth.weight[:, 0], depth.bias)

    def whole_state(self, state: State, part: int) -> State:
        """The state of one scale over the whole picture; patch parallelism adds the other bands' here."""
        return state


class FusedUpBlock(UpBlock):
    """Double the resolution; the shortcut's repeated tensor is never made."""

    def forward(self, x: Image) -> Float[Tensor, "batch channels_out double_h double_w"]:
        if torch.is_grad_enabled() or not self.shortcut:
            return super().forward(x)
        rows = _to_rows(x)
        if self.kind == "interpolate":
            main = self.conv(functional.interpolate(_to_image(rows), scale_factor=2, mode="nearest"))
        else:
            main = self.conv(_to_image(rows))
        return _to_image(upsample_add(rows, _to_rows(main), self.kind == "pixel_shuffle"))


class FusedDecoder(Decoder):
    """The decoder with its last norm and activation in one pass."""

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
    return model


def attend(attention: LinearAttention, rows: Rows, whole_state: Callable[[State, int], State]) -> Rows:
    """All heads and scales of DC-AE's linear attention, output projection included.

    `whole_state` turns the state of one scale over these rows into that of the whole picture.
    """
    batch, height, width, _ = rows.shape
    joint = functional.linear(rows, _joint_weight(attention))
    parts = [joint, *(_to_rows(scale(_to_image(joint))) for scale in attention.to_qkv_multiscale)]
    attended = []
    for index, part in enumerate(parts):
        # Runs of 3 · head_dim channels hold q, k and v of one head.
        heads = part.reshape(batch, height * width, -1, 3, attention.head_dim)
        query, key, value = heads.unbind(3)
        state = whole_state(linear_attention_state(key, value), index)
        attended.append(linear_attention_apply(query, state, ATTENTION_EPSILON).flatten(2))
    merged = attended[0] if len(attended) == 1 else torch.cat(attended, dim=2)
    return functional.linear(merged.view(batch, height, width, -1), attention.to_out.weight)


def activate(x: Image, act: object) -> Image:
    """ReLU or SiLU, in place."""
    return functional.relu(x, inplace=True) if act is functional.relu else functional.silu(x, inplace=True)


def channels_last(x: Image) -> Image:
    """The same tensor with the channels of a pixel side by side in memory."""
    return x.contiguous(memory_format=torch.channels_last)


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
    if type(module) is nn.Conv2d and not module.weight.is_inference():
        module.weight.data = channels_last(module.weight.data)
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


def _kind(act: object) -> Activation:
    return "relu" if act is functional.relu else "silu"


def _matrix(layer: nn.Conv2d) -> Float[Tensor, "outputs dim"]:
    return layer.weight.flatten(1)


def _to_rows(x: Image) -> Rows:
    return x.permute(0, 2, 3, 1).contiguous()


def _to_image(rows: Rows) -> Image:
    return rows.permute(0, 3, 1, 2)
