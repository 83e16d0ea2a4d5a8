"""Residual autoencoding against a plain autoencoder: equal parameters, steps and pictures.

python benchmarks/residual_autoencoding.py [--seeds 0 1 2] [--steps 400]
writes benchmarks/results/residual_autoencoding.json. Runs found there are not made again, and a run that was
stopped goes on from its checkpoint in outputs/ (its `cpu_seconds` are those of the last piece); `--name` and
`--merge` spread them over processes. The plain net is the same one with every shortcut around a change of
resolution, and around the latents, switched off.
`residual_curve.py` trains wider nets on a GPU, at f8, f16, f32 and f64.
"""
# bench: cpu, 60 min:

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from record import RESULTS, record
from torch import nn

from fewer.core.device import isolated_randomness
from fewer.core.progress import LineProgress, SilentProgress
from fewer.generate.autoencoder import DCAutoencoder, DCAutoencoderConfig, ReconstructionWeights
from fewer.generate.autoencoder.blocks import DownBlock, UpBlock
from fewer.generate.autoencoder.crops import PictureFolder
from fewer.generate.autoencoder.phases import PhasePlan
from fewer.generate.autoencoder.training import TrainingOptions, train_autoencoder
from fewer.generate.image_metrics import psnr

ROOT = Path(__file__).parents[1]
WIDTHS = (16, 32, 32, 64, 64, 128)
LATENTS = {8: 2, 16: 8, 32: 32, 64: 128}


def small_config(ratio: int, widths: tuple[int, ...], residual: bool) -> DCAutoencoderConfig:
    stages = ratio.bit_length()
    widths = (*widths, *widths[-1:] * max(0, stages - len(widths)))[:stages]
    blocks = ("ResBlock",) * min(3, stages) + ("EfficientViTBlock",) * max(0, stages - 3)
    return DCAutoencoderConfig(
        latent_channels=LATENTS[ratio],
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=(1,) * stages,
        decoder_layers_per_block=(1,) * stages,
        encoder_qkv_multiscales=((),) * stages,
        decoder_qkv_multiscales=((),) * stages,
        encoder_out_shortcut=residual,
        decoder_in_shortcut=residual,
    )


def build(config: DCAutoencoderConfig, residual: bool, preserve_variance: bool, seed: int) -> DCAutoencoder:
    with isolated_randomness(seed):
        model = DCAutoencoder(config)
        for module in model.modules():
            if isinstance(module, DownBlock | UpBlock):
                module.shortcut = module.shortcut and residual
            if preserve_variance and isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    return model


def run(run_name: str, options: argparse.Namespace, pictures: PictureFolder, ratio: int, seed: int) -> dict:
    residual, preserve, rate = {
        "residual": (True, False, 1e-3),
        "plain": (False, False, 1e-3),
        "plain, variance kept, lr 1e-3": (False, True, 1e-3),
        "plain, variance kept, lr 3e-4": (False, True, 3e-4),
    }[run_name]
    crop, batch = 32, 16
    model = build(small_config(ratio, WIDTHS, residual), residual, preserve, seed)
    device = "cpu"
    folder = (
        ROOT / "outputs" / "residual_autoencoding" / f"{run_name}-{ratio}-{seed}-{options.steps}-{device}"
    )
    training = TrainingOptions(
        seed=seed, device=device, dtype=torch.float32, ema_decay=None,
        schedule="cosine", warmup=20, checkpoint_every=100, resume=True, checkpoint_folder=folder,
        weights=ReconstructionWeights(gradients=0.5, pyramid=0.0),
    )  # fmt: skip
    plan = PhasePlan(phase=1, steps=options.steps, crop=crop, batch=batch, rate=rate, weight_decay=0.01)
    began = time.process_time()
    progress = LineProgress(sys.stderr) if options.verbose else SilentProgress()
    result = train_autoencoder(model, pictures.crops, [plan], training, progress)[1]
    seconds = time.process_time() - began
    test = pictures.crops(512, crop, torch.Generator().manual_seed(99), held_out=True)
    with torch.no_grad():
        quality = [psnr(model(part.to(device)).float().cpu().clamp(-1, 1), part) for part in test.split(64)]
    return {
        "run": run_name, "ratio": ratio, "seed": seed, "steps": options.steps,
        "psnr": float(torch.cat(quality).mean()),
        "parameters": sum(p.numel() for p in model.parameters()), "cpu_seconds": round(seconds, 1),
        "steps_in_last_piece": len(result.losses),
        "last_loss": sum(result.losses[-20:]) / max(len(result.losses[-20:]), 1),
        "device": device, "crop": crop, "batch": batch,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--ratios", type=int, nargs="+", default=[32])
    parser.add_argument("--runs", nargs="+", default=["residual", "plain"])
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--name", default="residual_autoencoding", help="of the result's file")
    parser.add_argument("--merge", nargs="+", default=[], help="only take the runs of these results in")
    options = parser.parse_args()
    pictures = PictureFolder(ROOT / "data" / "photos")
    found: list[dict] = []
    for name in (options.name, *options.merge):
        path = RESULTS / f"{name}.json"
        rows = json.loads(path.read_text())["runs"] if path.exists() else []
        found += [row for row in rows if not any(same(row, other) for other in found)]
    if options.merge:
        record(options.name, {"runs": found})
        return
    for seed in options.seeds:
        for ratio in options.ratios:
            for name in options.runs:
                wanted = {"run": name, "ratio": ratio, "seed": seed, "steps": options.steps, "device": "cpu"}
                if any(same(row, wanted) for row in found):
                    continue
                found.append(run(name, options, pictures, ratio, seed))
                print(json.dumps(found[-1]), flush=True)
                record(options.name, {"runs": found})


def same(row: dict, other: dict) -> bool:
    """Whether two rows tell of one run."""
    return all(row[key] == other[key] for key in ("run", "ratio", "seed", "steps", "device"))


if __name__ == "__main__":
    main()
