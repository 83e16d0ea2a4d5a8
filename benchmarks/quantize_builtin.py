"""The built-in text-to-image model, method by method: pictures at the same seeds against the 16-bit model's.

PSNR and SSIM are against the 16-bit picture of the same prompt and seed. --judge FOLDER adds the alignment
judge's score where `fewer.generate` has one. Prompts are a text file, one a line, none of which was used for
calibration. Run: python benchmarks/quantize_builtin.py --prompts 200 --prompt-file PROMPTS.txt --calibration
CALIBRATION.txt
"""

import argparse
import copy
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fewer.generate.pipeline import TextToImage
from fewer.quantize import FAST, Recipe, plan_layers, quantize

WITHOUT = {"smooth": False}
METHODS: dict[str, tuple[str, int, dict[str, object]]] = {
    "naive int4": ("int4", 0, WITHOUT),
    "smoothing only int4": ("int4", 0, {}),
    "SVD only int4": ("int4", 32, WITHOUT | {"refine_rounds": 1}),
    "SVDQuant int4": ("int4", 32, {}),
    "SVDQuant nvfp4": ("nvfp4", 32, {}),
    "SVDQuant h8": ("h8", 32, {}),
}
PEERS = ("NF4 weight-only (bitsandbytes)", "torchao int4 weight-only", "torchao fp8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="default")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--prompt-file", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--calibration-prompts", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--methods", nargs="*", default=[*METHODS, *PEERS])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/quantize_builtin.json"))
    arguments = parser.parse_args()
    pipeline = TextToImage.load(arguments.model)
    original = copy.deepcopy(pipeline.transformer)
    held_out, train = lines(arguments.prompt_file)[: arguments.prompts], lines(arguments.calibration)
    held_out = [prompt for prompt in held_out if prompt not in set(train)]
    expected = draw(pipeline, held_out, arguments.steps)
    table: dict[str, dict[str, object]] = {}
    for method in arguments.methods:
        pipeline.transformer = copy.deepcopy(original)
        began = time.perf_counter()
        try:
            prepare(method, pipeline, train[: arguments.calibration_prompts])
        except (ImportError, RuntimeError, NotImplementedError, ValueError) as error:
            if method not in PEERS:
                raise
            table[method] = {"not measured": f"{type(error).__name__}: {error}"[:200]}
            continue
        seconds = time.perf_counter() - began
        found = draw(pipeline, held_out, arguments.steps)
        table[method] = compare(found, expected) | {"seconds_to_quantize": round(seconds, 1)}
        print(method, json.dumps(table[method]), flush=True)
        write(arguments, held_out, table)
    write(arguments, held_out, table)


def prepare(method: str, pipeline: TextToImage, train: list[str]) -> None:
    if method in METHODS:
        form, rank, choices = METHODS[method]
        values = {"grid": FAST.grid, "refine_rounds": FAST.refine_rounds, "rows": FAST.rows} | choices
        rank = min(
            rank,
            min(min(c.shape) for c in plan_layers(pipeline.transformer).choices if c.method == "svdquant"),
        )

        def calibrate() -> None:
            for index, prompt in enumerate(train):
                pipeline(prompt, seed=10_000 + index, steps=8)

        quantize(pipeline.transformer, form, rank, calibrate, recipe=Recipe(**values))  # pyright: ignore
        return
    for name in plan_layers(pipeline.transformer).names("svdquant"):
        layer = pipeline.transformer.get_submodule(name)
        if method.startswith("NF4"):
            import bitsandbytes.functional as functional

            weight = layer.weight.data
            packed, state = functional.quantize_4bit(weight.flatten(1), quant_type="nf4", blocksize=64)
            layer.weight.data = (
                functional.dequantize_4bit(packed, state).reshape(weight.shape).to(weight.dtype)
            )
        elif isinstance(layer, nn.Linear):
            from torchao.quantization import (
                Float8DynamicActivationFloat8WeightConfig,
                Int4WeightOnlyConfig,
                quantize_,
            )

            config = (
                Int4WeightOnlyConfig() if "int4" in method else Float8DynamicActivationFloat8WeightConfig()
            )
            quantize_(layer, config)


def draw(pipeline: TextToImage, prompts: list[str], steps: int) -> list[np.ndarray]:
    return [
        np.asarray(pipeline(prompt, seed=index, steps=steps).images[0], dtype=np.float64)
        for index, prompt in enumerate(prompts)
    ]


def compare(found: list[np.ndarray], expected: list[np.ndarray]) -> dict[str, object]:
    """Means over prompts; SSIM by torchmetrics."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    squared = [((a - b) ** 2).mean() for a, b in zip(found, expected, strict=True)]
    as_image = lambda array: torch.tensor(array / 255).permute(2, 0, 1)[None].float()  # noqa: E731
    ssim = [
        float(structural_similarity_index_measure(as_image(a), as_image(b), data_range=1.0))
        for a, b in zip(found, expected, strict=True)
    ]
    psnr = [10 * np.log10(255**2 / max(value, 1e-6)) for value in squared]
    return {
        "psnr": round(float(np.mean(psnr)), 3),
        "ssim": round(float(np.mean(ssim)), 4),
        "pictures": len(found),
    }


def lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def write(arguments: argparse.Namespace, prompts: list[str], table: dict[str, dict[str, object]]) -> None:
    result = {
        "model": str(arguments.model),
        "prompts": len(prompts),
        "steps": arguments.steps,
        "against": "the 16-bit model's picture of the same prompt and seed",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s)",
        "versions": {"torch": torch.__version__},
        "methods": table,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
