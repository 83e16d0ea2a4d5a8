"""SVDQuant and its ablations on three synthetic layers with outlier channels, errors on held-out rows.

Recipe of a layer: 256 input channels with log-normal scales, 5 of them 15 times larger; a 384 x 256 weight
with a strong rank-6 part and heavy-tailed column scales. Error = ||Y - Y'|| / ||Y|| on 256 rows that
calibration never saw. Run: python benchmarks/quantize_layers.py --output
benchmarks/results/quantize_layers.json
"""
# bench: cpu, 3 min: --output benchmarks/results/quantize_layers.json

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch

from fewer.quantize.formats import FORMATS, decode_weight, round_weight
from fewer.quantize.gptq import gptq
from fewer.quantize.measure import layer_error
from fewer.quantize.parts import Part, Samples
from fewer.quantize.recipe import Recipe
from fewer.quantize.solve import solve_group


def synthetic_layer(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(calibration rows [256, 256], held-out rows [256, 256], weight [384, 256])."""
    random = np.random.Generator(np.random.PCG64(seed))
    dim, out = 256, 384
    scale = np.exp(0.5 * random.standard_normal(dim))
    scale[random.choice(dim, 5, replace=False)] *= 15
    rows = random.standard_normal((512, dim)) * scale
    weight = random.standard_normal((out, dim)) / np.sqrt(dim)
    left = np.linalg.qr(random.standard_normal((out, 6)))[0]
    right = np.linalg.qr(random.standard_normal((dim, 6)))[0]
    weight += (left * np.array([6, 4, 3, 2, 2, 1.5])) @ right.T
    weight *= 1 + 0.6 * np.abs(random.standard_t(4, dim))
    as_tensor = [torch.tensor(array, dtype=torch.float32) for array in (rows[:256], rows[256:], weight)]
    return as_tensor[0], as_tensor[1], as_tensor[2]


def held_out_error(seed: int, form: str, rank: int, **choices: object) -> tuple[float, list[float]]:
    """(relative error on held-out rows, calibration loss of every kept refinement round)."""
    rows, held_out, weight = synthetic_layer(seed)
    part = Part(("layer",), [weight], [None], Samples(rows, rows.abs().amax(dim=0)))
    layers, reports = solve_group([part], FORMATS[form], rank, Recipe(**choices))  # pyright: ignore
    return layer_error(layers["layer"], weight, None, held_out), reports[0].losses


def correlated_inputs(rows: int, dim: int, seed: int) -> torch.Tensor:
    """AR(1) rows with coefficient 0.8, their channels shuffled."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, dim, generator=generator)
    values = [noise[:, 0]]
    for column in range(1, dim):
        values.append(0.8 * values[-1] + 0.6 * noise[:, column])
    return torch.stack(values, dim=1)[:, torch.randperm(dim, generator=generator)]


def gptq_ratio(form: str, seed: int) -> float:
    """Output error of GPTQ over that of rounding to nearest, on 2048 rows that GPTQ never saw."""
    inputs = correlated_inputs(4096, 256, seed)
    weight = torch.randn(384, 256, generator=torch.Generator().manual_seed(seed + 100))
    codes, scales = gptq(weight, inputs[:2048], FORMATS[form])
    error = (decode_weight(codes, scales, FORMATS[form], 256) - weight) @ inputs[2048:].mT
    plain = (round_weight(weight, FORMATS[form]) - weight) @ inputs[2048:].mT
    return (error.norm() / plain.norm()).item()


METHODS: dict[str, tuple[int, dict[str, object]]] = {
    "naive": (0, {"smooth": False}),
    "smoothing only": (0, {}),
    "SVD only": (32, {"smooth": False, "refine_rounds": 1}),
    "SVDQuant r16 one-shot": (16, {"refine_rounds": 1}),
    "SVDQuant r32 one-shot": (32, {"refine_rounds": 1}),
    "SVDQuant r64 one-shot": (64, {"refine_rounds": 1}),
    "SVDQuant r16": (16, {}),
    "SVDQuant r32": (32, {}),
    "SVDQuant r64": (64, {}),
}


OTHER_FORMATS = ("naive", "smoothing only", "SVDQuant r32")  # the rank and one-shot ablations are for int4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/quantize_layers.json"))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    began = time.perf_counter()
    table = {
        form: {
            name: [
                round(held_out_error(seed, form, rank, **choices)[0], 5) for seed in range(arguments.seeds)
            ]
            for name, (rank, choices) in METHODS.items()
            if form == "int4" or name in OTHER_FORMATS
        }
        for form in ("int4", "nvfp4", "h8", "w4a8")
    }
    int4 = {name: np.array(values) for name, values in table["int4"].items()}
    best = int4["SVDQuant r32"]
    ratios = {
        "int4 r32 / naive (bar 0.22)": best / int4["naive"],
        "int4 r32 / smoothing only (bar 0.45)": best / int4["smoothing only"],
        "int4 r32 / SVD only (bar 0.40)": best / int4["SVD only"],
        "int4 r32 one-shot / naive": int4["SVDQuant r32 one-shot"] / int4["naive"],
        "int4 r32 one-shot / smoothing only": int4["SVDQuant r32 one-shot"] / int4["smoothing only"],
        "int4 r32 one-shot / SVD only": int4["SVDQuant r32 one-shot"] / int4["SVD only"],
        "refined / one-shot, int4 r32 (bar 0.93)": best / int4["SVDQuant r32 one-shot"],
        "nvfp4 / int4 (bar 0.85)": np.array(table["nvfp4"]["SVDQuant r32"]) / best,
        "h8 / int4 (bar 0.75)": np.array(table["h8"]["SVDQuant r32"]) / best,
        "h8 / w4a8 with bf16 scales (bar 1.0)": np.array(table["h8"]["SVDQuant r32"])
        / np.array(table["w4a8"]["SVDQuant r32"]),
        "int4 r32 / r16 (bar < 1)": best / int4["SVDQuant r16"],
        "int4 r64 / r32 (bar < 1)": int4["SVDQuant r64"] / best,
    }
    gptq_table = {
        form: [round(gptq_ratio(form, seed), 4) for seed in range(arguments.seeds)]
        for form in ("int4", "nvfp4", "h8")
    }
    ratios |= {f"GPTQ / rounding, {form} (bar 0.75)": np.array(values) for form, values in gptq_table.items()}
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), CPU",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "seconds": round(time.perf_counter() - began, 1),
        "held_out_error": table,
        "gptq_over_rounding_on_correlated_inputs": gptq_table,
        "worst_ratio": {name: round(float(values.max()), 4) for name, values in ratios.items()},
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["worst_ratio"], indent=2))


if __name__ == "__main__":
    main()
