"""Encoding and decoding in tiles, with the result of the whole picture: no seams, no blending.

Only stages with EfficientViT blocks look at the whole picture; they are deep, hence small. Everything
shallower is 3x3 convolutions and per-pixel norms, which see no further than a halo that follows from the
blocks. So: the deep stages run once on the whole map (their attention as a stream of tiles: first the
sums over keys and values, then the readings), the shallow ones tile by tile with a halo that is cut off.
A crop that ends at the picture's border pads there as the untiled network does.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from fewer.core.progress import Progress, SilentProgress
from fewer.generate.autoencoder.blocks import DownBlock, EfficientViTBlock, UpBlock
from fewer.generate.autoencoder.dc_ae import Decoder, Encoder

Image = Float[Tensor, "batch channels height width"]
# Without attention everything is local; maps of 1/8 the side are small enough to keep whole.
SMALL_ENOUGH = 3
# Tiles of the deepest maps need not shrink further: halos would cost more than the tiles save.
SMALLEST_STREAM = 16


@dataclass(frozen=True, slots=True)
class Window:
    """A tile and the crop around it: rows and columns of the tile, of the crop, and of the tile in it."""

    tile: tuple[slice, slice]
    crop: tuple[slice, slice]
    inner: tuple[slice, slice]


def windows(height: int, width: int, side: int, halo: int) -> Iterator[Window]:
    """Covers (height, width) once with tiles of at most `side`, each with up to `halo` around it."""
    rows, columns = (_spans(length, side, halo) for length in (height, width))
    for row in rows:
        for column in columns:
            yield Window(*(tuple(pair) for pair in zip(row, column, strict=True)))


def _spans(length: int, side: int, halo: int) -> list[tuple[slice, slice, slice]]:
    spans = []
    for start in range(0, length, side):
        stop = min(start + side, length)
        first, last = max(start - halo, 0), min(stop + halo, length)
        spans.append((slice(start, stop), slice(first, last), slice(start - first, stop - first)))
    return spans


def global_stage(stages: nn.ModuleList) -> int:
    """The shallowest stage that must see the whole picture: stages below it are run in tiles."""
    attentive = [
        index
        for index, stage in enumerate(stages)
        if any(isinstance(block, EfficientViTBlock) for block in stage.children())
    ]
    return min(attentive) if attentive else min(SMALL_ENOUGH, len(stages) - 1)


def decoder_halo(decoder: Decoder, first: int | None = None) -> int:
    """How far, in pixels of the map that enters the tiled stages, an output pixel can see.

    Tiled are the stages below `first`, by default all that can be.
    """
    halo = _up_halo(decoder.conv_out, 0) if isinstance(decoder.conv_out, UpBlock) else 1
    for stage in list(decoder.up_blocks)[: global_stage(decoder.up_blocks) if first is None else first]:
        for block in reversed(stage):
            halo = _up_halo(block, halo) if isinstance(block, UpBlock) else halo + 2
    return halo


def _up_halo(block: UpBlock, halo: int) -> int:
    """Across an up block, output to input: before a shuffle the convolution is on the small map."""
    return (halo + 2) // 2 if block.kind == "interpolate" else (halo + 1) // 2 + 1


def encoder_halo(encoder: Encoder) -> int:
    """How far, in pixels of the picture, a pixel of the map that leaves the tiled stages can see."""
    halo = 0
    for stage in reversed(list(encoder.down_blocks)[: global_stage(encoder.down_blocks)]):
        for block in reversed(stage):
            halo = 2 * halo + 1 if isinstance(block, DownBlock) else halo + 2
    return 2 * halo + 1 if isinstance(encoder.conv_in, DownBlock) else halo + 1


def decode_tiled(
    decoder: Decoder,
    latents: Float[Tensor, "batch latent_channels lat_h lat_w"],
    side: int,
    progress: Progress | None = None,
) -> Image:
    """`decoder(latents)` with memory set by tiles of `side` pixels (rounded to what the stages allow).

    `progress` hears of every tile, and of every block that runs on the whole map.
    """
    first = global_stage(decoder.up_blocks)
    progress = progress or SilentProgress()
    x = decoder.from_latents(latents)
    scale = 2 ** (len(decoder.up_blocks) - 1 - first)
    height, width = x.shape[2] * scale, x.shape[3] * scale
    parts = list(windows(height, width, max(side >> first, 1), decoder_halo(decoder)))
    progress.start("decode", _blocks(decoder.up_blocks[first:]) + len(parts))
    try:
        for index in range(len(decoder.up_blocks) - 1, first - 1, -1):
            x = _run_whole(decoder.up_blocks[index], x, max(side >> index, SMALLEST_STREAM), progress)
        return _shallow(decoder, x, first, iter(parts), progress)
    finally:
        progress.stop()


# At 1/4 the side the maps are as large as a strip of the stages above; cutting there costs the least halo.
WHOLE_FROM = 2


def decode_in_strips(
    decoder: Decoder, latents: Float[Tensor, "batch latent_channels lat_h lat_w"], lines: int
) -> Image:
    """`decoder(latents)`, its shallowest stages in strips of `lines` lines and the picture's whole width.

    Needs more memory than `decode_tiled` and computes almost nothing twice.
    """
    first = min(WHOLE_FROM, global_stage(decoder.up_blocks))
    x = decoder.from_latents(latents)
    for stage in reversed(list(decoder.up_blocks)[first:]):
        for block in stage.children():
            x = block(x)
    height, width = x.shape[2:]
    across = slice(0, width)
    strips = (
        Window((tile, across), (crop, across), (inner, across))
        for tile, crop, inner in _spans(height, max(lines >> first, 1), decoder_halo(decoder, first))
    )
    return _shallow(decoder, x, first, strips)


def _shallow(
    decoder: Decoder, x: Image, first: int, parts: Iterator[Window], progress: Progress | None = None
) -> Float[Tensor, "batch colours picture_height picture_width"]:
    """The stages below `first` and the last layer, window by window."""
    factor = 2**first
    channels = decoder.conv_out.out_channels
    image = x.new_empty(x.shape[0], channels, x.shape[2] * factor, x.shape[3] * factor)
    for window in parts:
        part = x[(..., *window.crop)]
        for index in range(first - 1, -1, -1):
            for block in decoder.up_blocks[index].children():
                part = block(part)
        part = decoder.to_image(part)
        image[(..., *_scaled(window.tile, factor))] = part[(..., *_scaled(window.inner, factor))]
        if progress is not None:
            progress.advance()
    return image


def encode_tiled(
    encoder: Encoder, image: Image, side: int, progress: Progress | None = None
) -> Float[Tensor, "batch latent_channels lat_h lat_w"]:
    """`encoder(image)` with memory set by tiles of `side` pixels (rounded to what the stages allow).

    `progress` as in `decode_tiled`.
    """
    progress = progress or SilentProgress()
    first = global_stage(encoder.down_blocks)
    factor = 2**first
    small_h, small_w = image.shape[2] // factor, image.shape[3] // factor
    halo = -(-encoder_halo(encoder) // factor)  # every crop starts on a multiple of the factor
    parts = list(windows(small_h, small_w, max(side >> first, 1), halo))
    progress.start("encode", len(parts) + _blocks(encoder.down_blocks[first:]))
    x = None
    try:
        for window in parts:
            part = encoder.conv_in(image[(..., *_scaled(window.crop, factor))])
            for index in range(first):
                for block in encoder.down_blocks[index].children():
                    part = block(part)
            if x is None:
                x = part.new_empty(*part.shape[:2], small_h, small_w)
            x[(..., *window.tile)] = part[(..., *window.inner)]
            progress.advance()
        assert x is not None
        for index in range(first, len(encoder.down_blocks)):
            x = _run_whole(encoder.down_blocks[index], x, max(side >> index, SMALLEST_STREAM), progress)
    finally:
        progress.stop()
    return encoder.to_latents(x)


def _scaled(spans: tuple[slice, slice], factor: int) -> tuple[slice, slice]:
    rows, columns = spans
    return slice(rows.start * factor, rows.stop * factor), slice(
        columns.start * factor, columns.stop * factor
    )


def _blocks(stages: nn.ModuleList) -> int:
    return sum(len(list(stage.children())) for stage in stages)


def _run_whole(stage: nn.Module, x: Tensor, side: int, progress: Progress) -> Tensor:
    for block in stage.children():
        x = stream_block(block, x, side) if isinstance(block, EfficientViTBlock) else block(x)
        progress.advance()
    return x


def stream_block(block: EfficientViTBlock, x: Image, side: int) -> Image:
    """`block(x)` without its wide intermediate maps: exact up to the order of one fp32 sum.

    The attention's state is a sum over pixels, so tiles can be added up in a first pass and read in a
    second. The gated convolution, 8 times as wide as its input, needs a halo of one pixel.
    """
    attention = block.attn
    reach = max((scale.proj_in.kernel_size[0] // 2 for scale in attention.to_qkv_multiscale), default=0)
    summary: Tensor | float = 0.0
    for window in windows(*x.shape[2:], side, reach):
        qkv = attention.project(x[(..., *window.crop)])[(..., *window.inner)]
        _, key, value = attention.split_heads(qkv)
        summary = summary + attention.summarize(key, value)
    attended = x.new_empty(x.shape)
    for window in windows(*x.shape[2:], side, reach):
        qkv = attention.project(x[(..., *window.crop)])[(..., *window.inner)]
        query, _, _ = attention.split_heads(qkv)
        rows = window.tile[0].stop - window.tile[0].start
        update = attention.finish(attention.read(query, summary), rows, x.dtype)
        attended[(..., *window.tile)] = x[(..., *window.tile)] + update
    out = x.new_empty(x.shape)
    for window in windows(*x.shape[2:], side, 1):
        update = block.conv_out(attended[(..., *window.crop)])[(..., *window.inner)]
        out[(..., *window.tile)] = attended[(..., *window.tile)] + update
    return out
