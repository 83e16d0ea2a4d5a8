"""The built-in text-to-image model, method by method: pictures at the same noise against the 16-bit model's.

PSNR and SSIM are against the bf16 model's picture of the same prompt and noise; the judges (colour, count,
place, order, style, identity) are those of builtin_model.py. Every method starts from the bf16 weights; sums
are taken in fp32 (a CPU without bf16 units is nine times slower in bf16; a GPU multiplies in TF32 while it
draws), and one row shows what bf16 arithmetic alone changes. Prompts describe held-out combinations,
calibration draws training combinations. Run:
python benchmarks/quantize_builtin.py [--device cuda] [--methods ...]
A call adds its methods to the table of earlier calls with the same model, prompts and steps. On a GPU too the
layers run as their exact fp32 reference, not through the kernels; one process at a time, because small
operations wait for the time slices of others.
"""
# bench: gpu, 5 min: --device cuda --batch 100

import argparse
import copy
import dataclasses
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from builtin_model import JUDGE
from quantize_peers import nf4_weights, torchao_fp8, torchao_int4
from quantize_pictures import Model, Prompts, against, judge_of, pictures
from torch import nn

from fewer.core.device import pick_device
from fewer.core.files import write_json
from fewer.core.modules import set_module
from fewer.core.tensors import read_tensors, write_tensors
from fewer.generate.scenes.captions import full_caption
from fewer.generate.scenes.compose import Scene
from fewer.generate.scenes.judges import SpriteJudge, judge_pictures
from fewer.generate.scenes.pool import draw_scenes
from fewer.quantize import FAST, Recipe, plan_layers, quantize
from fewer.quantize.linear import QuantizedLinear, reference_product

WITHOUT = {"smooth": False}
OURS: dict[str, tuple[str, int, dict[str, object]]] = {
    "naive int4": ("int4", 0, WITHOUT),
    "smoothing only int4": ("int4", 0, {}),
    "SVD only int4": ("int4", 32, WITHOUT | {"refine_rounds": 1}),
    "SVDQuant int4": ("int4", 32, {}),
    "SVDQuant int4 + GPTQ": ("int4", 32, {"gptq": True}),
    "naive nvfp4": ("nvfp4", 0, WITHOUT),
    "SVDQuant nvfp4": ("nvfp4", 32, {}),
    "naive h8": ("h8", 0, WITHOUT),
    "SVDQuant h8": ("h8", 32, {}),
}
PEERS: dict[str, Callable[[nn.Module, list[str]], str]] = {
    "NF4 weight-only": nf4_weights,
    "torchao int4 weight-only": torchao_int4,
    "torchao fp8": torchao_fp8,
}
REFERENCE, ARITHMETIC = "bf16", "bf16 arithmetic too"
FACTS = (
    "model", "held_out_prompts", "calibration_prompts", "steps", "guidance", "recipe", "against", "machine",
    "versions",
)  # fmt: skip
JUDGES = ("colour", "count", "left_right", "order", "style", "identity", "identity_top5", "shuffled")


class Exact(nn.Module):
    """A quantized layer that runs as its fp32 reference on every device."""

    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        moved = inputs.movedim(1, -1) if self.layer.channels_first else inputs
        outputs = reference_product(self.layer, moved.flatten(0, -2)).to(inputs.dtype)
        outputs = outputs.unflatten(0, moved.shape[:-1])
        return outputs.movedim(-1, 1) if self.layer.channels_first else outputs


def prepare(
    method: str,
    transformer: nn.Module,
    calibrate: Callable[[nn.Module], object],
    progress: dict[str, object],
    common: dict[str, object],
) -> nn.Module:
    """The transformer under one method; what was done is noted in `progress`."""
    transformer = transformer.to(torch.bfloat16)
    if method == ARITHMETIC:
        return transformer
    transformer = transformer.float()
    if method in PEERS:
        progress["made_by"] = PEERS[method](transformer, plan_layers(transformer).names("svdquant"))
    elif method in OURS:
        form, rank, choices = OURS[method]
        start = FAST if common["preset"] == "fast" else Recipe()
        changes = {name: value for name, value in common.items() if name != "preset"} | choices
        recipe = dataclasses.replace(start, branch_dtype="bf16", **changes)
        quantize(transformer, form, rank, lambda: calibrate(transformer), recipe=recipe)
        reports = transformer.quantization_reports
        progress["mean_layer_error"] = round(sum(r.error for r in reports) / len(reports), 5)
        progress["seconds_to_solve"] = round(sum(report.seconds for report in reports), 1)
        progress["bytes_of_layers"] = sum(report.bytes_after for report in reports)
        for name, layer in list(transformer.named_modules()):
            if isinstance(layer, QuantizedLinear):
                set_module(transformer, name, Exact(layer))
    return transformer


@torch.no_grad()
def main() -> None:
    options = arguments()
    if options.join:
        join(options)
        return
    device = pick_device(options.device)
    torch.backends.cudnn.allow_tf32 = device.type == "cuda"
    vocabulary, judge = judge_of(options.judge, device)
    if options.few_steps:
        options.steps = options.few_steps
    parts = Model(options.model, device, options.few_steps)
    scenes = draw_scenes(vocabulary, options.prompts, "held-out", seed=9000 + options.seed)
    held_out = Prompts(options, parts, "held-out", [full_caption(scene) for scene in scenes])
    train = draw_scenes(vocabulary, options.calibration_prompts, "train", seed=100)
    calibration = Prompts(options, parts, "calibration", [full_caption(scene) for scene in train])

    result, common = table(options, parts), recipe_for(device, options.preset)
    work = Work(options, parts, judge, scenes, calibration, held_out, common)
    expected: torch.Tensor | None = None
    for method in [REFERENCE, *(m for m in options.methods if m != REFERENCE)]:
        try:
            row, expected = examine(method, work, expected)
        except (RuntimeError, ValueError, ImportError) as error:  # one method must not cost the rest
            print(method, "failed:", f"{type(error).__name__}: {error}"[:2000], flush=True)
            if expected is None:
                raise
            continue
        result["methods"][method] = row
        differences(result)
        write_json(options.output, result)
        print(method, json.dumps(row), flush=True)


@dataclass(frozen=True, slots=True)
class Work:
    """What every method is examined with."""

    options: argparse.Namespace
    parts: Model
    judge: SpriteJudge
    scenes: list[Scene]
    calibration: Prompts
    held_out: Prompts
    common: dict[str, object]


def examine(method: str, work: Work, expected: torch.Tensor | None) -> tuple[dict[str, object], torch.Tensor]:
    """A row of the table, and the pictures that rows are compared with (this one's own if there are none)."""
    parts, steps, row = work.parts, work.options.steps, {}
    began = time.perf_counter()
    transformer = prepare(
        method,
        copy.deepcopy(parts.transformer),
        lambda model: work.calibration.latents(model, steps, torch.float32),
        row,
        work.common,
    )
    row["seconds_to_prepare"] = round(time.perf_counter() - began, 1)
    dtype = torch.bfloat16 if method == ARITHMETIC else torch.float32
    began = time.perf_counter()
    torch.backends.cuda.matmul.allow_tf32 = True  # for the pictures alone: quantizing stays in fp32
    kept = work.options.keep and work.options.keep / f"{method}.safetensors"
    if kept and kept.exists():
        found = read_tensors(kept, parts.device)["pictures"]
    else:
        found = pictures(parts.autoencoder, work.held_out.latents(transformer, steps, dtype))
    torch.backends.cuda.matmul.allow_tf32 = False
    if kept and not kept.exists() and method == REFERENCE:
        write_tensors(kept, {"pictures": found})
    found[:1].cpu()  # the clock waits for a GPU
    row["seconds_to_draw"] = round(time.perf_counter() - began, 1)
    if expected is not None:
        row |= against(found, expected)
    verdict = asdict(judge_pictures(work.judge, found, work.scenes))
    asked = [name for name in JUDGES if math.isfinite(verdict[name])]
    row["judges"] = {name: round(100 * verdict[name], 2) for name in asked}
    return row, found if expected is None else expected


def differences(result: dict[str, object]) -> None:
    """The bars: what each method loses on its worst judge, and what SVDQuant gains over naive rounding."""
    methods = result["methods"]
    base = methods.get(REFERENCE, {}).get("judges")
    for name, row in methods.items():
        if base and name != REFERENCE:
            lost = {
                judge: round(base[judge] - row["judges"][judge], 2) for judge in JUDGES[:-1] if judge in base
            }
            worst = max(lost, key=lambda judge: lost[judge])
            row["points_lost_on_the_worst_judge"] = [worst, lost[worst]]
    if {"naive int4", "SVDQuant int4"} <= methods.keys():
        gain = methods["SVDQuant int4"]["psnr"] - methods["naive int4"]["psnr"]
        result["psnr_gain_of_svdquant_int4_over_naive_int4"] = round(gain, 3)


def recipe_for(device: torch.device, preset: str) -> dict[str, object]:
    """A GPU takes the randomised SVD throughout; one pass over the calibration in any case."""
    randomized = {"svd": "randomized"} if device.type == "cuda" else {}
    return {"preset": preset, "sample_mebibytes": 4096} | randomized


def join(options: argparse.Namespace) -> None:
    """One table of several calls' tables; they must agree on everything but their methods."""
    tables = [json.loads(path.read_text()) for path in options.join]
    result: dict[str, object] = dict(tables[0])
    for other in tables[1:]:
        assert all(other[name] == result[name] for name in FACTS), "tables of different runs"
        result["methods"] = result["methods"] | other["methods"]
    differences(result)
    write_json(options.output, result)


def table(options: argparse.Namespace, parts: Model) -> dict[str, object]:
    """The facts of this run, with the rows of an earlier one that agrees on all of them."""
    facts: dict[str, object] = {
        "model": {
            "name": str(options.model),
            "transformer_parameters": sum(p.numel() for p in parts.transformer.parameters()),
            "latent_side": parts.transformer.params.sample_size,
        },
        "held_out_prompts": options.prompts,
        "calibration_prompts": options.calibration_prompts,
        "steps": options.steps,
        "guidance": "built in" if options.few_steps else parts.settings.guidance,
        "recipe": "fast preset, branch in bf16"
        if options.preset == "fast"
        else "39 candidates, refinement until it stops, "
        f"{'randomised' if parts.device.type == 'cuda' else 'exact'} SVD, branch in bf16",
        "against": "the picture of the same prompt and noise from the bf16 weights, products in "
        + ("TF32, sums in fp32" if parts.device.type == "cuda" else "fp32"),
        "machine": torch.cuda.get_device_name()
        if parts.device.type == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} thread(s), {options.machine}",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    earlier = json.loads(options.output.read_text()) if options.output.exists() else {}
    assert tuple(facts) == FACTS
    same = all(earlier.get(name) == value for name, value in facts.items())
    return facts | {"methods": earlier["methods"] if same else {}}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="default")
    parser.add_argument("--judge", type=Path, default=JUDGE)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--join", type=Path, nargs="*", help="tables of other calls, to be put together")
    parser.add_argument("--few-steps", type=int, default=0, help="the few-step edition in that many steps")
    parser.add_argument("--preset", choices=("standard", "fast"), default="standard")
    parser.add_argument("--keep", type=Path, help="folder where the 16-bit pictures are kept for other calls")
    parser.add_argument("--text", type=Path, help="folder where the prompts' embeddings are kept")
    parser.add_argument("--machine", default="CPU, shared", help="noted beside the figures")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--calibration-prompts", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="*", default=[*OURS, *PEERS, ARITHMETIC])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/quantize_builtin.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
