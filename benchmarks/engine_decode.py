"""DC-AE f32c32 decoding at 1024, 2048 and 4096 px: diffusers eager and compiled, us plain, fused and tiled.

runs on: gpu. Random weights, the same in every contender; batch 1.
Run: python benchmarks/engine_decode.py [--tiny --device cpu] [--output FILE.json]
"""
# bench: gpu, 2 min:

import argparse
import copy
from collections.abc import Callable

import torch
from stopwatch import (
    PEAK_BF16,
    Figures,
    contest,
    finish,
    keeping,
    measure,
    needs_gpu,
    options,
    ratios,
    relative_error,
)
from torch import Tensor

from fewer.generate.autoencoder import DCAutoencoder, DCAutoencoderConfig, published_config
from fewer.generate.autoencoder.formats import config_to_mapping
from fewer.generate.engine import accelerate

FLOP = {1024: 8.36e12, 2048: 33.4e12, 4096: 133.7e12}
TINY = DCAutoencoderConfig(
    latent_channels=4, attention_head_dim=8, encoder_block_types=("ResBlock", "EfficientViTBlock"),
    decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 16),
    decoder_block_out_channels=(8, 16), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
    encoder_qkv_multiscales=((), (3,)), decoder_qkv_multiscales=((), (3,)),
)  # fmt: skip


def contenders(
    plain: DCAutoencoder, latents: Tensor, tiles: tuple[int, ...], given: argparse.Namespace
) -> dict[str, Callable[[], Figures]]:
    fast = accelerate(copy.deepcopy(plain))
    expected = plain.decode(latents, tile=min(tiles)).cpu()

    def row(call: Callable[[], Tensor]) -> Figures:
        facts = measure(call, given.device, given.runs)
        facts["relative_error"] = relative_error(call().cpu(), expected)
        return facts

    def diffusers(compiled: bool) -> Figures:
        from diffusers import AutoencoderDC

        facts = {k: v for k, v in config_to_mapping(plain.config).items() if not k.startswith("_")}
        with latents.device:
            peer = AutoencoderDC.from_config(facts).to(latents.dtype).eval()
        peer.load_state_dict(plain.state_dict())
        decode = torch.compile(peer.decoder, dynamic=False) if compiled else peer.decoder
        return row(lambda: decode(plain.unscale(latents)))

    ways: dict[str, Callable[[], Figures]] = {
        "fewer engine": lambda: row(lambda: fast.decode(latents, tile=None)),
        "diffusers eager": lambda: diffusers(False),
        "diffusers compiled": needs_gpu(given.device, lambda: diffusers(True)),
        "fewer plain": lambda: row(lambda: plain.decode(latents, tile=None)),
    }
    for tile in tiles:
        ways[f"fewer engine, tiles of {tile} px"] = lambda tile=tile: row(
            lambda: fast.decode(latents, tile=tile)
        )
    return ways


@torch.no_grad()
def main() -> None:
    given = options("engine_decode")
    gpu = given.device.startswith("cuda")
    torch.manual_seed(0)
    config = TINY if given.tiny else published_config("f32c32-sana")
    with torch.device(given.device):
        plain = DCAutoencoder(config).eval().to(torch.bfloat16 if gpu else torch.float32)
    dtype = next(plain.parameters()).dtype
    results: dict[str, object] = {}
    sizes = (8,) if given.tiny else (1024, 2048, 4096)
    for pixels in [size for size in sizes if given.works in f"{size} px"]:
        side = pixels // config.spatial_compression_ratio
        latents = torch.randn(1, config.latent_channels, side, side).to(given.device, dtype)
        floor = {"": 1e3 * FLOP.get(pixels, 0.0) / PEAK_BF16}
        tiles = (4,) if given.tiny else (512, 1024)
        keep = keeping("engine_decode", results, f"{pixels} px", given)
        rows = contest(contenders(plain, latents, tiles, given), floor, given.only, keep)
        results[f"{pixels} px"] = {
            "contenders": rows, "floor_ms": floor[""],
            "times_as_long_as_engine": ratios(rows, "fewer engine"),
        }  # fmt: skip
    finish("engine_decode", results, given)


if __name__ == "__main__":
    main()
