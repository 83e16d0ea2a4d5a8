"""Eight equal requests to Sana 0.6B at 1024 px: one batch against one after another, through the engine.

runs on: gpu. Random weights, bf16, 20 steps with guidance, decoding included; "eager" is the plain model,
whose single requests leave the GPU waiting, the engine's do not.
Run: python benchmarks/engine_batching.py [--tiny --device cpu] [--output FILE.json]
"""
# bench: gpu, 2 min:

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


def drawing(
    scene: Scene, model: SanaTransformer, decoder: DCAutoencoder, batch: int, steps: int
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
        # Decoding one by one needs the memory of one.
        return torch.cat([decoder.decode(one.to(scene.dtype), tile=None) for one in latents.split(1)])

    return run


@torch.no_grad()
def main() -> None:
    given = options("engine_batching")
    params = TINY if given.tiny else replace(published("sana-0.6b-1024"), interpolation_scale=None)
    scene = Scene(params, 4 if given.tiny else 32, 5 if given.tiny else 300, given)
    torch.manual_seed(0)
    config = TINY_AUTOENCODER if given.tiny else published_config("f32c32-sana")
    plain = DCAutoencoder(config).eval().to(given.device, scene.dtype)
    models = {"engine": (accelerate(scene.model), accelerate(plain)), "eager": (scene.model, plain)}
    steps, runs = (2, 1) if given.tiny else (20, 5)

    def one_by_one(call: Callable[[], Tensor]) -> None:
        for _ in range(REQUESTS):
            call()

    def row(kind: str, batch: int) -> Figures:
        call = drawing(scene, *models[kind], batch, steps)
        return measure(call if batch > 1 else lambda: one_by_one(call), given.device, runs)

    ways: dict[str, Callable[[], Figures]] = {
        f"{kind}, {name}": lambda kind=kind, batch=batch: row(kind, batch)
        for kind in models
        for name, batch in (("one after another", 1), ("one batch", REQUESTS))
    }
    results: dict[str, object] = {"requests": REQUESTS}
    rows = contest(ways, None, given.only, keeping("engine_batching", results, "so far", given))
    median = {name: figures.get("median_ms") for name, figures in rows.items()}
    gain = {
        kind: round(one / many, 3)
        for kind in models
        if isinstance(one := median.get(f"{kind}, one after another"), float)
        and isinstance(many := median.get(f"{kind}, one batch"), float)
    }
    finish(
        "engine_batching", {"requests": REQUESTS, "contenders": rows, "times_faster_in_a_batch": gain}, given
    )


if __name__ == "__main__":
    main()
