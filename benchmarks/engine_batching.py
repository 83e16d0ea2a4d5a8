"""Eight equal requests to Sana 0.6B at 256, 512 and 1024 px: one batch against one after another.

runs on: gpu. Random weights, bf16, 20 steps with guidance, decoding included; "eager" is the plain model,
whose single requests leave the GPU waiting, the engine's do not.
Run: python benchmarks/engine_batching.py [--tiny --device cpu] [--output FILE.json]
"""
# bench: gpu, 2 min:

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch
from engine_sana import TINY, TINY_AUTOENCODER, Scene
from stopwatch import Figures, contest, finish, keeping, measure, options
from torch import Tensor

from fewer.generate.autoencoder import DCAutoencoder, published_config
from fewer.generate.engine import accelerate
from fewer.generate.sampling import Guidance, guided_velocity, sample
from fewer.generate.transformer import SanaTransformer, published

REQUESTS = 8
SIZES = (256, 512, 1024)


def drawing(
    scene: Scene, model: SanaTransformer, decoder: DCAutoencoder, batch: int, steps: int, together: bool
) -> Callable[[], Tensor]:
    """`batch` pictures at once; the negative prompts come first, as in the pipeline."""
    both = model.prepare(scene.text.repeat_interleave(batch, 0))
    alone = model.prepare(scene.text[1:].repeat_interleave(batch, 0))

    def evaluator(text):
        def velocity(latents: Tensor, timestep: float) -> Tensor:
            times = torch.full((len(latents),), timestep, device=latents.device)
            return model.denoise(latents.to(scene.dtype), times, text)

        return velocity

    noise = scene.latents[:1].float().repeat(batch, 1, 1, 1)
    guided = guided_velocity(evaluator(alone), evaluator(both), Guidance(scale=4.5))

    def run() -> Tensor:
        for step in sample(guided, noise, steps):
            latents = step.latents
        pieces = latents.split(batch if together else 1)
        return torch.cat([decoder.decode(piece.to(scene.dtype), tile=None) for piece in pieces])

    return run


class Requests:
    """The networks of one size, and eight equal requests to them."""

    def __init__(self, pixels: int, given: argparse.Namespace) -> None:
        self.given, self.steps, self.runs = given, *((2, 1) if given.tiny else (20, 5))
        params = TINY if given.tiny else replace(published("sana-0.6b-1024"), interpolation_scale=None)
        self.scene = Scene(params, 4 if given.tiny else pixels // 32, 5 if given.tiny else 300, given)
        torch.manual_seed(0)
        config = TINY_AUTOENCODER if given.tiny else published_config("f32c32-sana")
        with torch.device(given.device):
            plain = DCAutoencoder(config).eval().to(self.scene.dtype)
        fast = accelerate(self.scene.model), accelerate(plain)
        self.models = {"engine": fast, "eager": (self.scene.model, plain)}
        # Of small pictures the GPU decodes many as fast as one; of large ones each takes all of it.
        self.together = pixels <= 512

    def row(self, kind: str, batch: int) -> Figures:
        call = drawing(self.scene, *self.models[kind], batch, self.steps, self.together)

        def one_by_one() -> None:
            for _ in range(REQUESTS):
                call()

        return measure(call if batch > 1 else one_by_one, self.given.device, self.runs)

    def ways(self) -> dict[str, Callable[[], Figures]]:
        return {
            f"{kind}, {name}": lambda kind=kind, batch=batch: self.row(kind, batch)
            for kind in self.models
            for name, batch in (("one after another", 1), ("one batch", REQUESTS))
        }


@torch.no_grad()
def main() -> None:
    given = options("engine_batching")
    results: dict[str, object] = {"requests": REQUESTS}
    for pixels in (128,) if given.tiny else SIZES:
        title = f"{pixels} px"
        if given.works not in title:
            continue
        keep = keeping("engine_batching", results, title, given)
        rows = contest(Requests(pixels, given).ways(), None, given.only, keep)
        median = {name: figures.get("median_ms") for name, figures in rows.items()}
        gain = {
            kind: round(one / many, 3)
            for kind in ("engine", "eager")
            if isinstance(one := median.get(f"{kind}, one after another"), float)
            and isinstance(many := median.get(f"{kind}, one batch"), float)
        }
        results[title] = {"contenders": rows, "times_faster_in_a_batch": gain}
    finish("engine_batching", results, given)


if __name__ == "__main__":
    main()
