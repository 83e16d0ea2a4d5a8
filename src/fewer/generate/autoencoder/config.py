"""What a DC-AE is made of: the keys of diffusers' `AutoencoderDC` config.json, checked before building."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from fewer.core.errors import ConfigError

BlockType = Literal["ResBlock", "EfficientViTBlock"]
NormType = Literal["rms_norm", "batch_norm"]
Activation = Literal["relu", "silu"]
Width = Annotated[int, Field(ge=1, le=16384)]
Depth = Annotated[int, Field(ge=0, le=256)]
Scales = tuple[Annotated[int, Field(ge=3, le=31)], ...]

# Far above any published model (26), and few enough to be built and judged within a second.
MAX_BLOCKS = 128

_ONE_PER_STAGE = (
    "block_types",
    "layers_per_block",
    "qkv_multiscales",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DCAutoencoderConfig:
    """One autoencoder. Stage 0 works at full resolution, stage n-1 at 1/f of it, f = 2**(n-1).

    A single block, norm or activation name stands for "the same in every stage". Only stage 0 may have
    no blocks: then the first and the last convolution change the resolution themselves (spec §2.3).
    Raises `ConfigError` where the numbers do not fit together.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    in_channels: Annotated[int, Field(ge=1, le=64)] = 3
    """Channels of the picture: 3 for RGB, 1 for grey (medical), 4 for RGBA."""
    latent_channels: Annotated[int, Field(ge=1, le=4096)] = 32
    """Channels of the latents."""
    attention_head_dim: Annotated[int, Field(ge=1, le=1024)] = 32
    """Width of one head of the linear attention."""
    encoder_block_types: BlockType | tuple[BlockType, ...] = "ResBlock"
    """What each encoder stage is built of."""
    decoder_block_types: BlockType | tuple[BlockType, ...] = "ResBlock"
    """What each decoder stage is built of."""
    encoder_block_out_channels: tuple[Width, ...] = (128, 256, 512, 512, 1024, 1024)
    """Width of each encoder stage; their number sets the compression."""
    decoder_block_out_channels: tuple[Width, ...] = (128, 256, 512, 512, 1024, 1024)
    """Width of each decoder stage."""
    encoder_layers_per_block: tuple[Depth, ...] = (2, 2, 2, 3, 3, 3)
    """Blocks in each encoder stage."""
    decoder_layers_per_block: tuple[Depth, ...] = (3, 3, 3, 3, 3, 3)
    """Blocks in each decoder stage."""
    encoder_qkv_multiscales: tuple[Scales, ...] = ((), (), (), (5,), (5,), (5,))
    """Kernel sides of the multi-scale branches of each encoder stage's attention."""
    decoder_qkv_multiscales: tuple[Scales, ...] = ((), (), (), (5,), (5,), (5,))
    """The same for the decoder."""
    upsample_block_type: Literal["pixel_shuffle", "interpolate"] = "pixel_shuffle"
    """Convolution then pixel shuffle, or nearest neighbour then convolution."""
    downsample_block_type: Literal["pixel_unshuffle", "conv"] = "pixel_unshuffle"
    """Convolution then pixel unshuffle, or a convolution of stride 2."""
    decoder_norm_types: NormType | tuple[NormType, ...] = "rms_norm"
    """Norm of each decoder stage (encoders always use RMS)."""
    decoder_act_fns: Activation | tuple[Activation, ...] = "silu"
    """Activation of each decoder stage (encoders always use SiLU)."""
    encoder_out_shortcut: bool = True
    """Average channels around the projection to the latents."""
    decoder_in_shortcut: bool = True
    """Repeat channels around the projection from the latents."""
    decoder_conv_act_fn: Activation = "relu"
    """Activation before the last convolution."""
    scaling_factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Latents outside = encoder output * this, unless the two below are given."""
    latents_mean: tuple[float, ...] | None = None
    """Mean of each channel of the encoder's output; with `latents_std` it replaces `scaling_factor`."""
    latents_std: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] | None = None
    """Standard deviation of each channel of the encoder's output."""
    latent_prefixes: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Structured latents (DC-AE 1.5): numbers of leading channels that the decoder was trained to accept."""

    def __post_init__(self) -> None:
        for side in ("encoder", "decoder"):
            _check_stages(self, side)
        if len(self.encoder_block_out_channels) != len(self.decoder_block_out_channels):
            raise ConfigError(
                f"the encoder has {len(self.encoder_block_out_channels)} stages and the decoder "
                f"{len(self.decoder_block_out_channels)}; both must change the size by the same factor"
            )
        _check_shortcuts(self)
        _check_latents(self)

    @property
    def stages(self) -> int:
        """Number of resolutions, n."""
        return len(self.encoder_block_out_channels)

    @property
    def spatial_compression_ratio(self) -> int:
        """f: pixels per latent, each way."""
        return 2 ** (self.stages - 1)

    def of_stage(self, field: str, stage: int) -> str:
        """Entry of a "one name or one per stage" field, such as `decoder_norm_types`."""
        value = getattr(self, field)
        return value if isinstance(value, str) else value[stage]


def _check_stages(config: DCAutoencoderConfig, side: str) -> None:
    widths: tuple[int, ...] = getattr(config, f"{side}_block_out_channels")
    if not 2 <= len(widths) <= 12:
        raise ConfigError(f"{side}_block_out_channels has {len(widths)} stages; allowed: 2 to 12")
    names = [f"{side}_{name}" for name in _ONE_PER_STAGE]
    if side == "decoder":
        names += ["decoder_norm_types", "decoder_act_fns"]
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, str) and len(value) != len(widths):
            raise ConfigError(f"{name} has {len(value)} entries for {len(widths)} stages; give one per stage")
    layers: tuple[int, ...] = getattr(config, f"{side}_layers_per_block")
    if any(depth == 0 for depth in layers[1:]):
        raise ConfigError(f"{side}_layers_per_block is {layers}; only the first stage may have no blocks")
    if sum(layers) > MAX_BLOCKS:
        raise ConfigError(f"{side}_layers_per_block adds up to {sum(layers)}; at most {MAX_BLOCKS} are built")
    for stage, width in enumerate(widths):
        kind = config.of_stage(f"{side}_block_types", stage)
        if kind == "EfficientViTBlock" and layers[stage] and width < config.attention_head_dim:
            raise ConfigError(
                f"stage {stage} of the {side} is {width} wide, less than one attention head of "
                f"{config.attention_head_dim}; widen it or lower attention_head_dim"
            )
    for scales in getattr(config, f"{side}_qkv_multiscales"):
        if any(scale % 2 == 0 for scale in scales):
            raise ConfigError(f"{side}_qkv_multiscales holds an even kernel side in {scales}; use odd ones")


def _check_shortcuts(config: DCAutoencoderConfig) -> None:
    """Averaging and repeating channels need whole groups (spec §2.1)."""
    encoder, decoder = config.encoder_block_out_channels, config.decoder_block_out_channels
    divisions = []
    for stage in range(config.stages - 1):
        if stage > 0 or config.encoder_layers_per_block[0] > 0:
            divisions.append((4 * encoder[stage], encoder[stage + 1], f"down from encoder stage {stage}"))
        if stage > 0 or config.decoder_layers_per_block[0] > 0:
            divisions.append((4 * decoder[stage], decoder[stage + 1], f"up to decoder stage {stage}"))
    if config.encoder_out_shortcut:
        divisions.append((encoder[-1], config.latent_channels, "into the latents"))
    if config.decoder_in_shortcut:
        divisions.append((decoder[-1], config.latent_channels, "out of the latents"))
    for whole, part, where in divisions:
        if whole % part:
            raise ConfigError(f"the shortcut {where} needs {whole} channels to be a multiple of {part}")
    if config.downsample_block_type == "pixel_unshuffle":
        for width in encoder[1:]:
            if width % 4:
                raise ConfigError(f"pixel_unshuffle needs encoder widths in multiples of 4, not {width}")


def _check_latents(config: DCAutoencoderConfig) -> None:
    if (config.latents_mean is None) != (config.latents_std is None):
        raise ConfigError("latents_mean and latents_std go together; give both or neither")
    for name in ("latents_mean", "latents_std"):
        values = getattr(config, name)
        if values is not None and len(values) != config.latent_channels:
            raise ConfigError(
                f"{name} has {len(values)} entries, not {config.latent_channels} (latent_channels)"
            )
        if values is not None and not all(map(math.isfinite, values)):
            raise ConfigError(f"{name} holds a value that is not finite")
    if any(prefix > config.latent_channels for prefix in config.latent_prefixes):
        raise ConfigError(
            f"latent_prefixes {config.latent_prefixes} go beyond {config.latent_channels} latent channels"
        )
