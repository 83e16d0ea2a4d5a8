"""DC-AE, the deep compression autoencoder (arXiv 2410.10733; 1.5: arXiv 2508.00413).

An image in [-1, 1] goes through stages of half the resolution each, down to a latent of 1/f the side;
the decoder mirrors it. Around every change of resolution and around the latents runs a shortcut without
parameters that moves space to channels and back ("residual autoencoding"). There is no sampling and no
clamp. Latents outside this file are scaled to unit variance: `encode` and `decode` alone know how.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewer.core.errors import ConfigError
from fewer.core.progress import Progress
from fewer.generate.autoencoder.blocks import (
    ChannelRMSNorm,
    DownBlock,
    EfficientViTBlock,
    ResBlock,
    UpBlock,
    activation,
    average_channels,
    repeat_channels,
)
from fewer.generate.autoencoder.config import DCAutoencoderConfig

Image = Float[Tensor, "batch channels height width"]
Latents = Float[Tensor, "batch latent_channels lat_h lat_w"]
Tile = int | Literal["auto"] | None


class Encoder(nn.Module):
    """Image to unscaled latents: `conv_in`, stages 0 .. n-1, `conv_out` with the averaging shortcut."""

    def __init__(self, config: DCAutoencoderConfig) -> None:
        super().__init__()
        widths, layers = config.encoder_block_out_channels, config.encoder_layers_per_block
        kind = config.downsample_block_type
        if layers[0] > 0:
            self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        else:
            self.conv_in = DownBlock(config.in_channels, widths[1], kind, shortcut=False)
        self.down_blocks = nn.ModuleList()
        for stage in range(config.stages):
            blocks = [_block(config, "encoder", stage) for _ in range(layers[stage])]
            if stage < config.stages - 1 and blocks:
                blocks.append(DownBlock(widths[stage], widths[stage + 1], kind))
            self.down_blocks.append(nn.Sequential(*blocks))
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)
        self.out_shortcut = config.encoder_out_shortcut
        self.gradient_checkpointing = False

    def forward(self, image: Image) -> Latents:
        x = self.conv_in(image)
        for stage in self.down_blocks:
            for block in stage.children():  # one by one, so that each input is freed at once
                x = _run(block, x, self.gradient_checkpointing)
        return self.to_latents(x)

    def to_latents(self, x: Image) -> Latents:
        """The last layer: projection plus shortcut."""
        latents = self.conv_out(x)
        return latents + average_channels(x, latents.shape[1]) if self.out_shortcut else latents


class Decoder(nn.Module):
    """Unscaled latents to image: `conv_in` with the repeating shortcut, stages n-1 .. 0, norm, `conv_out`."""

    def __init__(self, config: DCAutoencoderConfig) -> None:
        super().__init__()
        widths, layers = config.decoder_block_out_channels, config.decoder_layers_per_block
        kind = config.upsample_block_type
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.in_shortcut = config.decoder_in_shortcut
        self.up_blocks = nn.ModuleList()
        for stage in range(config.stages):
            blocks = [_block(config, "decoder", stage) for _ in range(layers[stage])]
            if stage < config.stages - 1 and blocks:
                blocks.insert(0, UpBlock(widths[stage + 1], widths[stage], kind))
            self.up_blocks.append(nn.Sequential(*blocks))
        last = widths[0] if layers[0] > 0 else widths[1]
        self.norm_out = ChannelRMSNorm(last)
        self.act = activation(config.decoder_conv_act_fn)
        if layers[0] > 0:
            self.conv_out = nn.Conv2d(last, config.in_channels, 3, padding=1)
        else:
            self.conv_out = UpBlock(last, config.in_channels, kind, shortcut=False)
        self.gradient_checkpointing = False

    def forward(self, latents: Latents) -> Image:
        x = self.from_latents(latents)
        for stage in reversed(self.up_blocks):
            for block in stage.children():
                x = _run(block, x, self.gradient_checkpointing)
        return self.to_image(x)

    def from_latents(self, latents: Latents) -> Image:
        """The first layer: projection plus shortcut."""
        x = self.conv_in(latents)
        return x + repeat_channels(latents, x.shape[1]) if self.in_shortcut else x

    def to_image(self, x: Float[Tensor, "batch width_0 height width"]) -> Float[Tensor, "batch channels h w"]:
        """The last layer."""
        return self.conv_out(self.act(self.norm_out(x)))


class DCAutoencoder(nn.Module):
    """Encoder, decoder and the scaling of the latents between them.

    `forward` is for training: image to reconstruction, no scaling, no checks. Everybody else uses
    `encode` and `decode`.
    """

    def __init__(self, config: DCAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    @classmethod
    def load(
        cls, folder: str | Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> "DCAutoencoder":
        """Opens a folder in diffusers' layout or with native names; the model is in eval mode.

        Raises `FileError` for damaged or missing files, `ConfigError` for a config that fits nothing or
        tensors that do not fit it (one report that lists them all).
        """
        from fewer.generate.autoencoder.formats import load_autoencoder

        return load_autoencoder(Path(folder), dtype=dtype, device=torch.device(device))

    def save(self, folder: str | Path, naming: Literal["diffusers", "native"] = "diffusers") -> None:
        """Writes `config.json` and the tensors, atomically."""
        from fewer.generate.autoencoder.formats import save_autoencoder

        save_autoencoder(self, Path(folder), naming)

    def forward(self, image: Image) -> Image:
        return self.decoder(self.encoder(image))

    @torch.no_grad()
    def encode(
        self,
        image: Image,
        *,
        tile: Tile = "auto",
        pad: bool = False,
        check_finite: bool = False,
        progress: Progress | None = None,
    ) -> Latents:
        """Images in [-1, 1] to latents scaled to unit variance, (batch, c, height/f, width/f).

        `tile`: "auto" cuts the work into tiles when memory asks for it, a number is their side in pixels,
        None never; the result is the same. `pad=True` reflects the picture up to the next multiple of f.
        `progress` hears of every block and tile.
        Raises `ConfigError` for a size, channel count or dtype that does not fit.
        """
        from fewer.generate.autoencoder.capacity import pick_tile
        from fewer.generate.autoencoder.tiling import encode_tiled

        check_input("image", image, {self.config.in_channels}, check_finite)
        check_dtype("image", image, self)
        ratio = self.config.spatial_compression_ratio
        image = pad_to_multiple(image, ratio) if pad else image
        check_size(image, ratio)
        if image.shape[0] == 0:
            side = (image.shape[2] // ratio, image.shape[3] // ratio)
            return image.new_zeros(0, self.config.latent_channels, *side)
        side = pick_tile(self.encoder, image.shape, image, tile)
        if side is not None:
            return self.scale(encode_tiled(self.encoder, image, side, progress))
        with _told(self.encoder.down_blocks, progress, "encode"):
            return self.scale(self.encoder(image))

    @torch.no_grad()
    def decode(
        self,
        latents: Latents,
        *,
        tile: Tile = "auto",
        size: tuple[int, int] | None = None,
        check_finite: bool = False,
        progress: Progress | None = None,
    ) -> Image:
        """Latents of `encode` to images in about [-1, 1], (batch, channels, f*lat_h, f*lat_w).

        `tile` and `progress` as in `encode`. `size` (height, width) crops the padding of `encode(pad=True)`
        away again.
        With structured latents (`latent_prefixes`) any listed number of leading channels is accepted.
        Raises `ConfigError` for channels or a dtype that do not fit.
        """
        from fewer.generate.autoencoder.capacity import pick_tile
        from fewer.generate.autoencoder.tiling import decode_tiled

        channels = {self.config.latent_channels, *self.config.latent_prefixes}
        check_input("latents", latents, channels, check_finite)
        check_dtype("latents", latents, self)
        ratio = self.config.spatial_compression_ratio
        check_crop(size, latents, ratio)
        if latents.shape[0] == 0:
            side = (latents.shape[2] * ratio, latents.shape[3] * ratio)
            return latents.new_zeros(0, self.config.in_channels, *side)
        # Channels beyond a structured prefix are zero for the decoder, as in training.
        raw = torch.zeros_like(latents[:, :1]).repeat(1, self.config.latent_channels, 1, 1)
        raw[:, : latents.shape[1]] = self.unscale(latents)
        pixels = (len(raw), self.config.in_channels, raw.shape[2] * ratio, raw.shape[3] * ratio)
        side = pick_tile(self.decoder, pixels, raw, tile)
        if side is None:
            with _told(self.decoder.up_blocks, progress, "decode"):
                image = self.decoder(raw)
        else:
            image = decode_tiled(self.decoder, raw, side, progress)
        return image if size is None else image[..., : size[0], : size[1]]

    def scale(self, raw: Latents) -> Latents:
        """The encoder's output, to unit variance: per channel if the config has means and spreads."""
        if self.config.latents_std is None or self.config.latents_mean is None:
            return raw * self.config.scaling_factor
        mean, spread = self._channel_statistics(raw)
        return (raw - mean) / spread

    def unscale(self, latents: Latents) -> Latents:
        """Inverse of `scale`."""
        if self.config.latents_std is None or self.config.latents_mean is None:
            return latents / self.config.scaling_factor
        mean, spread = self._channel_statistics(latents)
        return latents * spread + mean

    def _channel_statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean = like.new_tensor(self.config.latents_mean)[: like.shape[1], None, None]
        return mean, like.new_tensor(self.config.latents_std)[: like.shape[1], None, None]


@contextmanager
def _told(stages: nn.ModuleList, progress: Progress | None, what: str) -> Iterator[None]:
    """Tells `progress` of every block that is done. What it raises, as at a cancellation, ends the work."""
    if progress is None:
        yield
        return
    blocks = [block for stage in stages for block in stage.children()]
    progress.start(what, len(blocks))
    hooks = [block.register_forward_hook(lambda *_: progress.advance()) for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        progress.stop()


def pad_to_multiple(image: Image, multiple: int) -> Float[Tensor, "batch channels padded_h padded_w"]:
    """Reflects the bottom and right edges outwards (as often as needed) up to multiples of `multiple`."""
    for axis in (2, 3):
        length = image.shape[axis]
        if length == 0:
            continue
        target = -(-length // multiple) * multiple
        position = torch.arange(target, device=image.device) % max(2 * (length - 1), 1)
        image = image.index_select(axis, torch.minimum(position, 2 * (length - 1) - position).clamp(min=0))
    return image


def _block(config: DCAutoencoderConfig, side: str, stage: int) -> nn.Module:
    width = getattr(config, f"{side}_block_out_channels")[stage]
    norm = config.of_stage("decoder_norm_types", stage) if side == "decoder" else "rms_norm"
    act = config.of_stage("decoder_act_fns", stage) if side == "decoder" else "silu"
    if config.of_stage(f"{side}_block_types", stage) == "ResBlock":
        return ResBlock(width, norm, act)
    scales = getattr(config, f"{side}_qkv_multiscales")[stage]
    return EfficientViTBlock(width, config.attention_head_dim, scales, norm)


def _run(block: nn.Module, x: Tensor, checkpointing: bool) -> Tensor:
    """A block; with checkpointing its inner activations are computed again in the backward pass."""
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(block, x, use_reentrant=False)
    return block(x)


def check_input(name: str, tensor: Tensor, channels: set[int], check_finite: bool) -> None:
    allowed = " or ".join(map(str, sorted(channels)))
    if tensor.ndim != 4:
        raise ConfigError(
            f"{name} has shape {tuple(tensor.shape)}; allowed: (batch, channels, height, width)"
        )
    if not tensor.is_floating_point():
        raise ConfigError(f"{name} has dtype {tensor.dtype}; allowed: floating point, scaled to [-1, 1]")
    if tensor.shape[1] not in channels:
        raise ConfigError(f"{name} has {tensor.shape[1]} channels; this autoencoder takes {allowed}")
    if min(tensor.shape[2:]) == 0:
        raise ConfigError(f"{name} has shape {tuple(tensor.shape)}: no pixels")
    if check_finite and not torch.isfinite(tensor).all():
        raise ConfigError(f"{name} holds NaN or infinite values")


def check_dtype(name: str, tensor: Tensor, model: nn.Module) -> None:
    """Raises `ConfigError` for a number format or a device that none of the model's weights have."""
    places = {(p.dtype, p.device.type) for p in model.parameters()}
    given = (tensor.dtype, tensor.device.type)
    if places and given not in places and not any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
        weights = " and ".join(sorted(f"{dtype} on {device}" for dtype, device in places))
        raise ConfigError(
            f"{name} is {tensor.dtype} on {tensor.device.type}, this autoencoder's weights are {weights}; "
            f"convert with {name}.to(...)"
        )


def check_crop(size: tuple[int, int] | None, latents: Tensor, ratio: int) -> None:
    """`size` may take nothing or something off, and must leave a pixel."""
    whole = [ratio * side for side in latents.shape[2:]]
    if size is not None and not all(0 < wanted <= side for wanted, side in zip(size, whole, strict=True)):
        raise ConfigError(
            f"size is {tuple(size)}; these latents decode to {whole[0]} x {whole[1]} (height x width), "
            "of which at least one pixel and at most all are kept"
        )


def check_size(image: Tensor, ratio: int) -> None:
    height, width = image.shape[2:]
    if height % ratio or width % ratio:
        near = [max(ratio, round(side / ratio) * ratio) for side in (height, width)]
        raise ConfigError(
            f"image is {width} x {height} (width x height), but sides must be multiples of {ratio} for this "
            f"autoencoder; the nearest size is {near[1]} x {near[0]}, or pass pad=True"
        )
