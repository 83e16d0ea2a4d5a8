"""What folding the low-rank branch into 8-bit weights costs in accuracy: synthetic layers, and real pictures.

runs on: cpu. The three layers of quantize_layers.py (outlier channels, a strong rank-6 part), quantized to h8
with rank 32; errors ||Y - Y'|| / ||Y|| on rows that calibration never saw: of the layer as it is stored, of
the engine's product with the branch beside its 8-bit weights and inside them. int4 (W4A4) stands beside it.
With --pictures: the built-in model, quantized to h8 as `fewer generate --precision svdquant` does it (four
prompts, quick recipe), draws prompts that calibration never saw, plain and through the engine in both forms;
PSNR is against the pictures of the 16-bit weights, velocities are compared at every step of one trajectory.
Run: python benchmarks/engine_fold.py [--seeds 3] [--pictures 4 --steps 8]
"""
# bench: cpu, 6 min: --pictures 4

import argparse
import copy
import math
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from quantize_layers import synthetic_layer
from record import record
from torch import Tensor

from fewer.kernels.scratch import WeightScratch
from fewer.quantize.formats import FORMATS
from fewer.quantize.fused import fuse
from fewer.quantize.linear import QuantizedLinear, reference_product
from fewer.quantize.parts import Part, Samples
from fewer.quantize.recipe import Recipe
from fewer.quantize.solve import solve_group

if TYPE_CHECKING:
    from fewer.generate import TextToImage


@torch.no_grad()
def errors(seed: int) -> dict[str, float]:
    rows, held_out, weight = synthetic_layer(seed)
    expected = held_out @ weight.T

    def quantized(form: str) -> QuantizedLinear:
        part = Part(("layer",), [weight], [None], Samples(rows, rows.abs().amax(dim=0)))
        return QuantizedLinear(solve_group([part], FORMATS[form], 32, Recipe())[0]["layer"])

    h8, int4 = quantized("h8"), quantized("int4")
    found = {"h8": reference_product(h8, held_out), "int4": reference_product(int4, held_out)}
    for name, fold in (("h8, engine", False), ("h8, engine, branch folded", True)):
        product = fuse([h8], WeightScratch(), torch.float32, fold=fold)
        assert product is not None
        found[name] = product(held_out)[0]
    return {name: ((y - expected).norm() / expected.norm()).item() for name, y in found.items()}


def decibels(found: Tensor, expected: Tensor) -> float:
    """PSNR of two pictures of 0..255."""
    error = (found - expected).square().mean().item()
    return 10 * math.log10(255**2 / max(error, 1e-9))


def drawn(pipe: "TextToImage", prompts: tuple[str, ...], asked: dict[str, object]) -> list[Tensor]:
    """One picture a prompt, as numbers of 0..255."""
    images = pipe(prompts, seed=3, **asked).images
    return [torch.from_numpy(np.asarray(image).astype(np.float32)) for image in images]


def text_of(pipe: "TextToImage", prompts: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """What the transformer reads of some prompts."""
    embedded = pipe.encoder.encode(list(prompts), instruct=False)
    return embedded.tokens, embedded.mask


CALIBRATION = ("a red apple", "a smiling cat face", "a blue car", "two green trees")
HELD_OUT = (
    "a yellow banana",
    "a dog face",
    "a purple heart",
    "a red bus",
    "a white rabbit",
    "an orange fish",
)


@torch.no_grad()
def pictures(count: int, steps: int) -> dict[str, object]:
    """PSNR and velocity errors of both forms on the built-in model."""
    from fewer.generate import TextToImage
    from fewer.generate.engine import accelerate
    from fewer.generate.request import GenerateRequest
    from fewer.quantize import FAST, quantize

    torch.manual_seed(0)
    pipe = TextToImage.load(device="cpu", dtype="fp32")
    exact, prompts = pipe.transformer, HELD_OUT[:count]
    asked = {"steps": steps, "edition": "full"}
    expected = drawn(pipe, prompts, asked)
    pipe.transformer = copy.deepcopy(exact)
    sample = GenerateRequest(prompt=CALIBRATION, steps=4, edition="full")
    quantize(pipe.transformer, "h8", calibrate=lambda: list(pipe.iterate(sample)), recipe=FAST)
    shrunk = pipe.transformer
    forms: dict[str, Callable[[], object]] = {
        "h8, branch kept": lambda: accelerate(shrunk, "svdquant", graphs=False, keep_expanded=True),
        "h8, branch folded": lambda: accelerate(
            shrunk, "svdquant", graphs=False, keep_expanded=True, fold_branch=True
        ),
    }
    found: dict[str, object] = {"prompts": prompts, "steps": steps}
    text = exact.prepare(*text_of(pipe, prompts[:1]))
    generator = torch.Generator().manual_seed(1)
    side = exact.params.sample_size
    latents = torch.randn(1, exact.params.in_channels, side, side, generator=generator)
    times = [torch.tensor([float(t)]) for t in (999, 900, 700, 500, 300, 100)]
    wanted = [exact.denoise(latents, t, text) for t in times]
    for name, build in forms.items():
        pipe.transformer = build()  # pyright: ignore[reportAttributeAccessIssue]
        own = pipe.transformer.prepare(*text_of(pipe, prompts[:1]))
        rows = [
            ((pipe.transformer.denoise(latents, t, own) - y).norm() / y.norm()).item()
            for t, y in zip(times, wanted, strict=True)
        ]
        psnr = [decibels(a, b) for a, b in zip(drawn(pipe, prompts, asked), expected, strict=True)]
        found[name] = {
            "velocity_error": rows, "psnr": psnr, "mean_psnr": round(statistics.mean(psnr), 2)
        }  # fmt: skip
        print(name, found[name], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=0, help="of the built-in model, at most 6")
    parser.add_argument("--steps", type=int, default=8)
    given = parser.parse_args()
    found = {seed: errors(seed) for seed in range(given.seeds)}
    folded = [row["h8, engine, branch folded"] / row["h8, engine"] for row in found.values()]
    figures: dict[str, object] = {"errors": found, "folded_against_beside": folded}
    if given.pictures:
        figures["built_in_model"] = pictures(given.pictures, given.steps)
    print(record("engine_fold", figures).read_text())


if __name__ == "__main__":
    main()
