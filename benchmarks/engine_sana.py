"""Sana, one denoising step with guidance and 20 steps with decoding: diffusers two ways, us three ways.

runs on: gpu. Random weights of the published shapes, the same in every contender; batch 2, 300 text tokens.
The h8 contender rounds the same weights without calibration: its time is real, its error is an upper bound.
Run: python benchmarks/engine_sana.py [--tiny --device cpu] [--output FILE.json]
"""
# bench: gpu, 5 min:

import argparse
import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from four_bits import sana_in_h8
from stopwatch import (
    PEAK_BF16,
    PEAK_INT8,
    Figures,
    captured,
    contest,
    finish,
    keeping,
    measure,
    needs_gpu,
    options,
    ratios,
    relative_error,
    weight_gib,
)  # fmt: skip
from torch import Tensor

from fewer.generate.autoencoder import DCAutoencoder, DCAutoencoderConfig, published_config
from fewer.generate.engine import accelerate
from fewer.generate.engine.sana import Rows
from fewer.generate.sampling import Guidance, guided_velocity, sample
from fewer.generate.transformer import SanaParams, SanaTransformer, initialise, published
from fewer.generate.transformer.attention import KeysValues
from fewer.generate.transformer.formats import write_params

# One forward of batch 1 with 300 text tokens, in 10^12 multiply-adds (specs of the paper's models).
MACS = {("sana-0.6b-1024", 1024): 0.561, ("sana-0.6b-1024", 2048): 2.173, ("sana-0.6b-1024", 4096): 8.619,
        ("sana-1.6b-1024", 1024): 1.483, ("sana-1.6b-1024", 4096): 22.78}  # fmt: skip
DECODE_FLOP = {1024: 8.36e12, 2048: 33.4e12, 4096: 133.7e12}
TINY = SanaParams(
    in_channels=4, out_channels=4, heads=4, head_dim=16, depth=2, cross_heads=4, cross_head_dim=16,
    caption_channels=12, sample_size=4,
)  # fmt: skip
TINY_AUTOENCODER = DCAutoencoderConfig(
    latent_channels=4, attention_head_dim=8,
    encoder_block_out_channels=(8, 16), decoder_block_out_channels=(8, 16),
    encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), ()),
    decoder_qkv_multiscales=((), ()),
)  # fmt: skip


class Scene:
    """A model, its inputs for one size, and the ways to run it."""

    def __init__(self, params: SanaParams, side: int, length: int, given) -> None:
        self.device, self.runs = given.device, given.runs
        self.dtype = torch.bfloat16 if given.device.startswith("cuda") else torch.float32
        generator = torch.Generator(self.device).manual_seed(0)
        with torch.device(self.device):
            model = initialise(SanaTransformer(params), generator, zero_output=False).eval()
            self.latents = torch.randn(2, params.in_channels, side, side, generator=generator).to(self.dtype)
            text = torch.randn(2, length, params.caption_channels, generator=generator)
            self.times = torch.full((2,), 500.0)
        self.params, self.model, self.text = params, model.to(self.dtype), text.to(self.dtype)

    def diffusers(self, compiled: bool = False) -> Callable[[], Tensor]:
        from diffusers import SanaTransformer2DModel

        facts = {k: v for k, v in write_params(self.params).items() if not k.startswith("_")}
        with torch.device(self.device):
            peer = SanaTransformer2DModel(**facts).to(self.dtype).eval()
        peer.load_state_dict(self.model.state_dict())
        if compiled:  # block by block, as diffusers recommends: the blocks are alike, so one is compiled
            for block in peer.transformer_blocks:
                block.compile(dynamic=False)
        mask = torch.ones(self.text.shape[:2], device=self.device, dtype=self.dtype)
        return lambda: peer(self.latents, self.text, self.times, encoder_attention_mask=mask)[0]

    def ours(self, model: SanaTransformer) -> Callable[[], Tensor]:
        prepared = model.prepare(self.text)
        return lambda: model.denoise(self.latents, self.times, prepared)

    def block_error(self) -> float:
        """Of one block through the engine, against the same block in fp32."""
        block, fast = copy.deepcopy(self.model.transformer_blocks[0]).float(), accelerate(self.model)
        side, dim = self.latents.shape[2], self.params.width
        tokens = torch.randn(2, side * self.latents.shape[3], dim, device=self.device).to(self.dtype)
        modulation = 0.1 * torch.randn(2, 6, dim, device=self.device)
        text = self.model.prepare(self.text).blocks[0]
        wide = KeysValues(text.keys.float(), text.values.float())
        grid = (side, self.latents.shape[3])
        expected = block(tokens.float(), modulation, wide, None, grid)
        table = fast.transformer_blocks[0].scale_shift_table
        narrow = modulation.to(self.dtype)
        six = table[:, None] + narrow.transpose(0, 1)
        found = fast.transformer_blocks[0].run(Rows(tokens.flatten(0, 1)), six, narrow, text, None, grid)
        return relative_error(found.summed().view(expected.shape), expected)

    def h8(self, keep: bool, fold: bool = False) -> SanaTransformer:
        quantized = sana_in_h8(copy.deepcopy(self.model))
        return accelerate(quantized, "svdquant", keep_expanded=keep, fold_branch=fold)

    def quantized(self, keep: bool, fold: bool = False) -> Figures:
        model = self.h8(keep, fold)
        facts = self.row(lambda: self.ours(model))
        seconds = round(model.graphs.warm_up_seconds, 2)
        return {**facts, "weights_gib": weight_gib(model), "warm_up_seconds": seconds}

    def row(self, build: Callable[[], Callable[[], Tensor]], graph: bool = False) -> Figures:
        call = build()
        timed = captured(call, self.device) if graph else call
        facts = measure(timed, self.device, self.runs)
        facts["relative_error"] = relative_error(call(), self.ours(self.model)())
        return facts

    def step(self) -> dict[str, Callable[[], Figures]]:
        def plain() -> Figures:
            model = accelerate(self.model)
            facts = self.row(lambda: self.ours(model))
            seconds = round(model.graphs.warm_up_seconds, 2)
            return {**facts, "warm_up_seconds": seconds, "block_relative_error": self.block_error()}

        return {
            "bf16 fewer engine": plain,
            "h8 fewer engine": lambda: self.quantized(False),
            "h8 fewer engine, branch folded": lambda: self.quantized(False, True),
            "h8 fewer engine, weights kept expanded": lambda: self.quantized(True),
            "h8 fewer engine, weights kept expanded, branch folded": lambda: self.quantized(True, True),
            "bf16 diffusers compiled + graph": needs_gpu(
                self.device, lambda: self.row(lambda: self.diffusers(True), graph=True)
            ),
            "bf16 diffusers eager": lambda: self.row(self.diffusers),
        }  # fmt: skip

    def picture(self, autoencoder: DCAutoencoder, pixels: int) -> dict[str, Callable[[], Figures]]:
        # The plain decoder needs tiles at 4096 px; the engine cuts strips by itself.
        tile = 1024 if pixels == 4096 else None
        fast_decoder = accelerate(copy.deepcopy(autoencoder))

        def whole(model: SanaTransformer, decoder: DCAutoencoder) -> Callable[[], Tensor]:
            prepared, first = model.prepare(self.text), model.prepare(self.text[:1])

            def evaluator(text):
                def velocity(latents: Tensor, timestep: float) -> Tensor:
                    times = torch.full((len(latents),), timestep, device=latents.device)
                    return model.denoise(latents.to(self.dtype), times, text)

                return velocity

            def run() -> Tensor:
                guided = guided_velocity(evaluator(first), evaluator(prepared), Guidance(scale=4.5))
                for step in sample(guided, self.latents[:1].float(), 2 if self.runs < 20 else 20):
                    latents = step.latents
                return decoder.decode(latents.to(self.dtype), tile=tile if decoder is autoencoder else None)

            return run

        expected = whole(self.model, autoencoder)().cpu()

        def row(build: Callable[[], SanaTransformer], decoder: DCAutoencoder) -> Figures:
            call = whole(build(), decoder)
            facts, found = measure(call, self.device, self.runs), call()
            error = (found.cpu().float() - expected.float()).square().mean().clamp(min=1e-12)
            facts["psnr_against_plain"] = (10 * torch.log10(4 / error)).item()
            facts["same_bytes_again"] = torch.equal(found, call())
            return facts

        return {
            "bf16 fewer engine": lambda: row(lambda: accelerate(self.model), fast_decoder),
            "h8 fewer engine": lambda: row(lambda: self.h8(False), fast_decoder),
            "h8 fewer engine, weights kept expanded": lambda: row(lambda: self.h8(True), fast_decoder),
            "h8 fewer engine, weights kept expanded, branch folded": lambda: row(
                lambda: self.h8(True, True), fast_decoder
            ),
        }


def _autoencoder(scene: Scene, given: argparse.Namespace) -> DCAutoencoder:
    torch.manual_seed(0)
    config = TINY_AUTOENCODER if given.tiny else published_config("f32c32-sana")
    with torch.device(given.device):
        return DCAutoencoder(config).eval().to(scene.dtype)


@torch.no_grad()
def main() -> None:
    given = options("engine_sana")
    results: dict[str, object] = {}
    sizes = [("sana-0.6b-1024", 1024), ("sana-1.6b-1024", 1024), ("sana-0.6b-1024", 4096)]
    for name, pixels in [("tiny", 4)] if given.tiny else sizes:
        titles = [f"{name} {pixels} px, {what}" for what in ("one step", "20 steps and decode")]
        # The larger model's pictures cost what its steps do: they are left out.
        titles = [title for title in titles[: 1 if "1.6b" in name else 2] if given.works in title]
        if not titles:
            continue
        params = TINY if given.tiny else replace(published(name), interpolation_scale=None)
        scene = Scene(params, 4 if given.tiny else pixels // 32, 5 if given.tiny else 300, given)
        flop = 4 * MACS.get((name, pixels), 0.0) * 1e12  # batch 2, two operations a multiply-add
        step = {"bf16": 1e3 * flop / PEAK_BF16, "h8": 1e3 * flop / PEAK_INT8}
        decode = 1e3 * DECODE_FLOP.get(pixels, 0.0) / PEAK_BF16
        for title in titles:
            whole = title.endswith("decode")
            floors = {kind: 20 * floor + decode for kind, floor in step.items()} if whole else step
            ways = scene.picture(_autoencoder(scene, given), pixels) if whole else scene.step()
            rows = contest(ways, floors, given.only, keeping("engine_sana", results, title, given))
            results[title] = {
                "contenders": rows, "floor_ms": floors,
                "times_as_long_as_bf16_engine": ratios(rows, "bf16 fewer engine"),
                "times_as_long_as_h8_engine": ratios(rows, "h8 fewer engine"),
                "times_as_long_as_h8_engine_folded": ratios(
                    rows, "h8 fewer engine, weights kept expanded, branch folded"
                ),
            }  # fmt: skip
    finish("engine_sana", results, given)


if __name__ == "__main__":
    main()
