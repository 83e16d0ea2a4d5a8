"""How much memory encoding or decoding takes, and when that asks for tiles.

Counted in channels per picture pixel, from the blocks themselves; the factors below say how many maps of
a block's width live at once and were checked against a tensor counter (tests/generate/autoencoder).
"""

from typing import Literal

from torch import Tensor, nn

from fewer.core.device import available_memory
from fewer.core.errors import CapacityError, ConfigError
from fewer.generate.autoencoder.blocks import DownBlock, EfficientViTBlock, ResBlock, UpBlock
from fewer.generate.autoencoder.dc_ae import Decoder, Encoder
from fewer.generate.autoencoder.tiling import SMALLEST_STREAM, decoder_halo, encoder_halo, global_stage

TILES = (2048, 1024, 512, 256, 128)
# Leave room for what others allocate between the question and the work.
SHARE = 0.7


def pick_tile(
    network: Encoder | Decoder,
    pixels: tuple[int, ...],
    like: Tensor,
    tile: int | Literal["auto"] | None,
    wish: int | None = None,
) -> int | None:
    """Tile side in pixels, or None for the whole picture at once.

    "auto" takes the whole picture if it fits into 70 % of the free memory, else the largest tile that does;
    it keeps to a `wish`, in bytes, as well where tiles of some size can. Raises `ConfigError` for a tile that
    is no positive number, `CapacityError` if nothing fits.
    """
    if tile is None:
        return None
    if tile != "auto":
        if isinstance(tile, bool) or not isinstance(tile, int) or tile < 1:
            raise ConfigError(f"tile is {tile!r}; allowed: 'auto', None, or a side in pixels such as 512")
        return tile
    room = SHARE * available_memory(like.device)
    least = peak_bytes(network, pixels, like.element_size(), TILES[-1])
    wanted = room if wish is None else min(room, max(wish, int(1.1 * least)))
    if peak_bytes(network, pixels, like.element_size(), None) <= wanted:
        return None
    for side in TILES:
        needed = peak_bytes(network, pixels, like.element_size(), side)
        if side < max(pixels[2:]) and needed <= wanted:
            return side
    if least <= room:
        return TILES[-1]
    raise CapacityError(
        f"a picture of {pixels[3]} x {pixels[2]} pixels, {pixels[0]} at once, needs about "
        f"{least / 2**30:.1f} GiB even in tiles of {TILES[-1]}, and {room / 2**30:.1f} GiB may be used; "
        "try fewer pictures at once, a smaller size, or --dtype bf16"
    )


def peak_bytes(network: Encoder | Decoder, pixels: tuple[int, ...], itemsize: int, tile: int | None) -> int:
    """Estimate of the largest sum of live tensors, weights aside, for (batch, channels, height, width)."""
    batch, channels, height, width = pixels
    area = batch * height * width
    stages = network.up_blocks if isinstance(network, Decoder) else network.down_blocks
    first = global_stage(stages) if tile is not None else len(stages)
    halo = 0
    if tile is not None:
        halo = decoder_halo(network) * 2**first if isinstance(network, Decoder) else encoder_halo(network)
    side = max(tile or 0, 2**first) + 2 * halo
    tile_area = area if tile is None else batch * min(side, height) * min(side, width)
    peak = 0.0
    for index, stage in enumerate(stages):
        for block in stage.children():
            size = _map_bytes(block, itemsize) / 4**index
            if index < first:
                peak = max(peak, size * tile_area)
            elif isinstance(block, EfficientViTBlock):
                stream = max(tile or 0, SMALLEST_STREAM << index)
                stream_area = area if tile is None else batch * min(stream, height) * min(stream, width)
                keep = 3 * itemsize * block.attn.to_out.out_features / 4**index
                peak = max(peak, size * stream_area + keep * area)
            else:
                peak = max(peak, size * area)
    if tile is not None and first < len(stages):
        kept = _width(stages[first]) * itemsize * area / 4**first
        peak += kept
    return int(peak + 2 * channels * itemsize * area)


def _map_bytes(block: nn.Module, itemsize: int) -> int:
    """Bytes alive at once per pixel of the block's own stage."""
    wide = max(itemsize, 4)  # norms and attention products are in fp32
    if isinstance(block, ResBlock):
        return block.conv1.in_channels * (2 * itemsize + (2 if wide == itemsize else 3) * wide)
    if isinstance(block, EfficientViTBlock):
        width = block.attn.to_out.out_features
        joint = 3 * (1 + len(block.attn.to_qkv_multiscale)) * width
        return max(joint * (itemsize + 2 * wide), width * (1 + 3 * 8) * itemsize)
    if isinstance(block, UpBlock):
        inside = block.conv.in_channels if block.kind == "interpolate" else block.out_channels
        return (inside + 3 * block.out_channels) * itemsize
    assert isinstance(block, DownBlock)
    return 3 * block.conv.in_channels * itemsize


def _width(stage: nn.Module) -> int:
    for block in stage.children():
        if isinstance(block, ResBlock):
            return block.conv1.in_channels
        if isinstance(block, EfficientViTBlock):
            return block.attn.to_out.out_features
    return 0
