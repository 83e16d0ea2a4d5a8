"""Ways to tell a small diffusion transformer its class and time, at equal MACs a token: tokens, kernel
selection, adaLN-zero, and generated weights (CAN) on one, two or three kinds of layers, or all with adaLN.

python benchmarks/can_quality.py [--methods tokens can ...] [--seeds 0 1 2] [--steps 1200] [--batch 64]
writes benchmarks/results/can_quality.json; runs that are in the file already are kept. The network is that of
the method's measured reference: 28-px digits in patches of 4, width 64, 4 blocks, ratio 2 with a depthwise
convolution in every row, rank 32. The value is the flow error on held-out pictures (lower is better).
"""

import argparse
import json
import platform
import statistics
import time
from dataclasses import asdict
from pathlib import Path

import torch

from fewer.generate.conditional import ClassConditionalParams, ConditionPlan
from fewer.generate.conditional.accounting import profile
from fewer.generate.conditional.build import build
from fewer.generate.conditional.params import with_conditioning
from fewer.generate.conditional.pictures import read_labelled
from fewer.generate.conditional.training import TrainingOptions, train_class_conditional, validation_error

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "can_quality.json"
DATA = {"mnist": "mnist10k/mnist10k.npz", "pneumonia": "pneumoniamnist/pneumoniamnist.npz"}
PAPER = ("patch_embed", "dwconv", "attn_out")
METHODS: dict[str, tuple[str, ConditionPlan | None]] = {
    "tokens": ("tokens", None),
    "aks": ("tokens", ConditionPlan(kind="aks", targets=("dwconv",), zero_init=False)),
    "aks, all three": ("tokens", ConditionPlan(kind="aks", targets=PAPER, zero_init=False)),
    "adaln": ("adaln", None),
    "can, depthwise": ("tokens", ConditionPlan(targets=("dwconv",), rank=32)),
    "can, depthwise + patch": ("tokens", ConditionPlan(targets=("dwconv", "patch_embed"), rank=32)),
    "can": ("tokens", ConditionPlan(targets=PAPER, rank=32)),
    "can + head": ("tokens", ConditionPlan(targets=(*PAPER, "head"), rank=32)),
    "can + qkv": ("tokens", ConditionPlan(targets=(*PAPER, "qkv"), rank=32)),
    "adaln+can": ("adaln", ConditionPlan(targets=PAPER, rank=32)),
}


def run(method: str, seed: int, options: argparse.Namespace) -> dict:
    train, held_out = read_labelled(ROOT / "data" / DATA[options.data], options.size, grey=True)
    kind, plan = METHODS[method]
    params = ClassConditionalParams(
        architecture="dit", channels=1, out_channels=1, size=options.size, patch=options.patch,
        width=options.width, depth=4, heads=4,
        ffn_ratio=2.0, classes=len(train.class_names),
    )  # fmt: skip
    model = build(with_conditioning(params, kind), plan, seed)
    training = TrainingOptions(
        steps=options.steps,
        batch=options.batch,
        rate=options.rate,
        ema_decay=None,
        seed=seed,
        device=options.device,
    )
    began = time.monotonic()
    train_class_conditional(model, train, training)
    seconds = time.monotonic() - began
    inputs = (train.images[:1], torch.tensor([500.0]), train.labels[:1])
    return {
        "method": method, "data": options.data, "seed": seed, "steps": options.steps, "batch": options.batch,
        "rate": options.rate, "width": options.width,
        "size": options.size, "patch": options.patch, "error": validation_error(model, held_out),
        "seconds": round(seconds, 1), **asdict(profile(model.cpu(), *inputs)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--width", type=int, default=64, help="wider tokens have as many parameters as can")
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--patch", type=int, default=4)
    parser.add_argument("--data", default="mnist", choices=list(DATA))
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1) if options.device == "cpu" else None
    found = json.loads(RESULT.read_text())["runs"] if RESULT.exists() else []
    same = ("data", "steps", "batch", "rate", "width", "size", "patch")
    for seed in options.seeds:
        for method in options.methods:
            wanted = {"method": method, "seed": seed} | {name: getattr(options, name) for name in same}
            if any(all(r[name] == value for name, value in wanted.items()) for r in found):
                continue
            found.append(run(method, seed, options))
            print(json.dumps(found[-1]), flush=True)
            machine = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
            RESULT.parent.mkdir(exist_ok=True)
            RESULT.write_text(json.dumps({**machine, "runs": found}, indent=1) + "\n")
    settings = {name: getattr(options, name) for name in same}
    for method in METHODS:
        errors = [
            r["error"] for r in found if r["method"] == method and all(r[n] == v for n, v in settings.items())
        ]
        if errors:
            spread = statistics.stdev(errors) / len(errors) ** 0.5 if len(errors) > 1 else float("nan")
            print(f"{method:<24} {statistics.mean(errors):.4f} ± {spread:.4f} (s.e., {len(errors)} seeds)")


if __name__ == "__main__":
    main()
