"""Diffusion with fewer tokens: is compression better placed in the autoencoder (f32, patch 1) or in the patch
of the transformer (f8, patch 4)? And what do fewer tokens buy for a U-ViT-H at 512 px?

python benchmarks/fewer_tokens.py --parts speed quality
writes benchmarks/results/fewer_tokens_speed.json and fewer_tokens_quality.json.

Speed: training step (forward, backward, AdamW, bf16) and denoiser's forward pass of a U-ViT-H (501 M
parameters) on the latents of 512 px: f8 patch 2 (1,024 tokens, the published setting), f32 patch 1 (256), f64
patch 1 (64). An image takes 30 steps with guidance; decoding is not in it. Random weights.

Quality: two autoencoders of one design with latents of one size, f8c2 and f32c32, and DiTs of one shape
on their latents of 128-px crops of data/photos: 16 tokens of 32 numbers each for f32 patch 1 and f8
patch 4, and for comparison f8 with 64 tokens; equal steps. The Fréchet distance is that between 4,096
drawn and 4,096 fresh crops of the training photographs, in the features of a classifier trained here to
tell those photographs apart ("crop judge, seed 0"), and of the fixed random network of the
reconstruction report. `--quiet` starts the autoencoders linear, `--fresh` trains them on crops cut anew at
every step, and `--refine-steps` adds the paper's phase 3 (the decoder's head against a critic) to both: there
are rows of the decoders before and after it, for the same latents; crops to choose with say how many steps.
`--times-channels 4` takes the latents of DC-AE 1.5's size instead (f32c128, and f8c8). A drawing is also
compared with what the autoencoder makes of the fresh crops, which is the transformer's error alone.
"""
# bench: gpu, 5 min:

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from graphed import Trainee, steps_within, train_side_by_side
from record import record
from small_autoencoders import from_pool, quality
from step_forms import FORMS, fastest
from stopwatch import captured, measure
from tokens_autoencoders import (
    autoencoder_alone,
    autoencoder_to_train,
    crops_to_train_on,
    fresh_autoencoder,
    load_kept,
    refine,
    train_fitted,
)
from tokens_crops import Crops, reconstructed
from torch import Tensor, nn

from fewer.generate.conditional import ClassConditionalParams
from fewer.generate.conditional.build import build
from fewer.generate.conditional.params import PUBLISHED
from fewer.generate.conditional.training import flow_error, parameter_groups
from fewer.generate.conditional.u_vit import UViT
from fewer.generate.sampling.sampler import sample

SPEED = {"f8 patch 2": (64, 4, 2, 24), "f32 patch 1": (16, 32, 1, 96), "f64 patch 1": (8, 128, 1, 384)}
"""Side of the latents of 512 px, channels, patch, batch: the same number of tokens a batch in all."""
DIFFUSION = {"f32 patch 1": (32, 1), "f8 patch 4": (8, 4), "f8 patch 2": (8, 2)}
STEPS_AN_IMAGE = 2 * 30


def speed(options: argparse.Namespace) -> None:
    rows = {}
    for name, setting in SPEED.items():
        try:
            rows[name] = speed_of(*setting, options)
        except Exception as error:
            rows[name] = {"skipped": f"{type(error).__name__}: {str(error)[:300]}"}
        print(name, rows[name], flush=True)
        if options.device == "cuda":
            torch.cuda.empty_cache()
    first = rows["f8 patch 2"]
    for row in rows.values():
        for key in ("train_images_per_second", "drawn_images_per_second"):
            if key in row and key in first:
                row[f"{key}_over_f8"] = round(row[key] / first[key], 2)
    print({name: {k: v for k, v in row.items() if "over" in k} for name, row in rows.items()}, flush=True)
    record("fewer_tokens_speed", {"model": "u-vit-h", "pixels": 512, "rows": rows})


def speed_of(side: int, channels: int, patch: int, batch: int, options: argparse.Namespace) -> dict:
    device = options.device
    shape = PUBLISHED["u-vit-h-2"]
    tiny = {"width": 32, "depth": 3, "heads": 2} if options.tiny else {}
    batch = 2 if options.tiny else batch
    params = replace(shape, channels=channels, out_channels=channels, size=side, patch=patch, **tiny)
    with torch.device(device):
        model = UViT(params)
    inputs = (
        torch.randn(batch, channels, side, side, device=device),
        1000 * torch.rand(batch, device=device), torch.arange(batch, device=device) % 1000,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device == "cuda" or None)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            loss = model(*inputs).float().square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    trained = timed(step, device, 1 if options.tiny else 5)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
    optimizer.zero_grad(set_to_none=True)
    del optimizer
    model = model.to(torch.bfloat16).eval().requires_grad_(False)
    noisy = inputs[0].to(torch.bfloat16)
    with torch.no_grad():
        forward = captured(lambda: model(noisy, *inputs[1:]), device)
        drawn = timed(forward, device, 1 if options.tiny else 8)
        two = captured(lambda: model(noisy[:2], *(x[:2] for x in inputs[1:])), device)
        single = timed(two, device, 1 if options.tiny else 20)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": (side // patch) ** 2, "batch": batch,
        "train_images_per_second": batch / trained * 1e3,
        "train_peak_gib": round(peak, 1),
        "drawn_images_per_second": batch / (drawn * STEPS_AN_IMAGE) * 1e3,
        "one_image_ms_denoiser": single * STEPS_AN_IMAGE / 2,
    }  # fmt: skip


def timed(work: Callable[[], object], device: str, runs: int) -> float:
    """Median milliseconds."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        work()
    row = measure(work, device, runs)["median_ms"]
    assert isinstance(row, float)
    return row


def pictures_quality(options: argparse.Namespace) -> None:
    began = time.monotonic()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    crops = Crops(options)
    autoencoders = {ratio: fresh_autoencoder(ratio, options) for ratio in (8, 32)}
    fresh = {ratio: model for ratio, model in autoencoders.items() if not load_kept(model, ratio, options)}
    cut = crops_to_train_on(crops.train, options) if fresh else from_pool(crops.train, 1)
    form = FORMS[0]
    if options.form == "fastest" and fresh:
        new = lambda form: autoencoder_to_train(32, fresh_autoencoder(32, options), cut, options, form)  # noqa: E731
        form = fastest(new)
    trainees = [autoencoder_to_train(ratio, model, cut, options, form) for ratio, model in fresh.items()]
    train_side_by_side([crops.judge_trainee()])
    for trainee in trainees:
        trainee.prepare()
    if options.fit and trainees:
        steps_within(trainees, options.fit, options.autoencoder_steps)
    train_fitted(trainees, options.fit)
    options.autoencoder_steps = trainees[0].steps if trainees else 0
    print(f"{options.autoencoder_steps} steps after {time.monotonic() - began:.0f} s", flush=True)
    # Phase 3 leaves the encoder alone: both decoders draw from the same transformer's latents.
    kinds = {"": autoencoders}
    if options.refine_steps and fresh:
        kinds[" refined"] = {ratio: copy.deepcopy(model) for ratio, model in autoencoders.items()}
        refine(kinds[" refined"], cut, options, crops.distance_to_choose_with)  # type: ignore[arg-type]
    print(f"autoencoders and judge after {time.monotonic() - began:.0f} s", flush=True)
    rows: dict[str, dict] = {}
    with torch.no_grad():
        right = [
            (crops.judge(part.float() / 127.5 - 1).argmax(1) == labels).float()  # type: ignore[misc]
            for part, labels in zip(
                crops.train[:2048].split(512), crops.labels[:2048].split(512), strict=True
            )
        ]
    rows["judge"] = {"accuracy_on_training_crops": float(torch.cat(right).mean())}
    latents, scales, reached = {}, {}, {}
    for ratio in autoencoders:
        for kind, models in kinds.items():
            latents[ratio], scales[ratio], back = encoded(models[ratio], crops, options)
            reached[ratio, kind] = reconstructed(models[ratio], crops.fresh)
            rows[f"autoencoder f{ratio}{kind}"] = {
                "psnr_held_out": quality(models[ratio], crops.test),
                **{f"{name}_reconstructed": value for name, value in crops.distances(back).items()},
                "frechet_to_choose_with": crops.distance_to_choose_with(models[ratio]),
            }
    rows["other crops of the same photographs"] = crops.distances(crops.train[: len(crops.fresh)])
    print(rows, flush=True)
    record(options.name, {"rows": rows})
    wave = [
        (name, seed)
        for seed in options.seeds
        for name in options.latents
        if seed == 0 or name in list(DIFFUSION)[:2]
    ]
    nets = [diffusion_trainee(name, seed, crops, latents, options) for name, seed in wave]
    for net in nets:
        net.prepare()
    left = 0.0
    if options.fit:
        left = options.seconds - (time.monotonic() - began) - (3 + 4 * len(kinds)) * len(nets)
        steps_within(nets, left, options.steps)
    train_fitted(nets, left)
    options.steps = nets[0].steps
    print(f"transformers after {time.monotonic() - began:.0f} s", flush=True)
    for (name, seed), net in zip(wave, nets, strict=True):
        ratio = DIFFUSION[name][0]
        drawn = draw(net.model, latents[ratio].shape[1:], crops)
        for kind, models in kinds.items():
            pictures = decoded(models[ratio], drawn, scales[ratio])
            alone = crops.distances(pictures, reached[ratio, kind])["frechet_judge"]
            rows[f"{name}{kind}, seed {seed}"] = {
                "last_loss": float(net.history[: net.steps][-100:].mean()), **crops.distances(pictures),
                "frechet_judge_to_reconstructions": alone,
                "tokens": (latents[ratio].shape[-1] // DIFFUSION[name][1]) ** 2,
                "wave_seconds": round(net.seconds, 1),
            }  # fmt: skip
            print(name, kind, seed, rows[f"{name}{kind}, seed {seed}"], flush=True)
        settings = {key: value for key, value in vars(options).items() if isinstance(value, int | str)}
        record(options.name, {"rows": rows, "settings": settings})


@torch.no_grad()
def encoded(
    model: nn.Module, crops: Crops, options: argparse.Namespace
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """Latents of the training crops at unit variance (a channel, or as published in all of them together),
    their mean and spread, and crops decoded."""
    raw = torch.cat([model.encoder(p.float() / 127.5 - 1) for p in crops.train.split(256)])  # type: ignore
    mean, spread = raw.mean((0, 2, 3), keepdim=True), raw.std((0, 2, 3), keepdim=True)
    if options.one_scale:
        spread = spread.square().mean().sqrt().expand_as(spread)
    some = raw[: len(crops.fresh)].split(256)
    back = torch.cat([model.decoder(part).clamp(-1, 1) for part in some])  # type: ignore[operator]
    return (raw - mean) / spread, (mean, spread), back


def diffusion_trainee(
    name: str, seed: int, crops: Crops, latents: dict[int, Tensor], options: argparse.Namespace
) -> Trainee:
    ratio, patch = DIFFUSION[name]
    data, batch, device = latents[ratio], options.batch, options.device
    params = ClassConditionalParams(
        architecture="dit", channels=data.shape[1], out_channels=data.shape[1], size=data.shape[2],
        patch=patch, width=options.width, depth=options.depth, heads=options.width // 64,
        classes=crops.classes, adaln=True, tokens=False,
    )  # fmt: skip
    model = build(params, None, seed).to(device)

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(data), (batch,), generator=generator, device=device)
        level = torch.sigmoid(torch.randn(batch, generator=generator, device=device))
        noise = torch.randn(batch, *data.shape[1:], generator=generator, device=device)
        with torch.autocast(device, torch.bfloat16, cache_enabled=False, enabled=device == "cuda"):
            return flow_error(model, data[rows], crops.labels[rows], level, noise).mean()

    return Trainee(
        name=name, model=model, loss=loss, groups=parameter_groups(model, 0.01), rate=5e-4,
        steps=options.steps, warmup=min(200, options.steps // 2), final_rate=0.05, seed=seed,
    )  # fmt: skip


@torch.no_grad()
def draw(model: nn.Module, shape: torch.Size, crops: Crops) -> Tensor:
    """Latents of as many pictures as fresh crops, their classes evenly spread; 30 steps, no guidance."""
    generator = torch.Generator().manual_seed(11)
    device = crops.train.device
    labels = (torch.arange(len(crops.fresh)) % crops.classes).to(device)
    found = []
    for part in labels.split(512):
        noise = torch.randn(len(part), *shape, generator=generator).to(device)

        def velocity(latents: Tensor, level: float, part: Tensor = part) -> Tensor:
            times = torch.full((len(part),), float(level), device=device)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                return model(latents, times, part).float()

        latents = noise
        for step in sample(velocity, noise, 30, 1.0):
            latents = step.latents
        found.append(latents)
    return torch.cat(found)


@torch.no_grad()
def decoded(autoencoder: nn.Module, latents: Tensor, scale: tuple[Tensor, Tensor]) -> Tensor:
    """The pictures of such latents, in [-1, 1]."""
    parts = (autoencoder.decoder(part * scale[1] + scale[0]) for part in latents.split(256))  # type: ignore
    return torch.cat([part.float().clamp(-1, 1) for part in parts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--parts", nargs="+", default=["speed", "quality"], choices=["speed", "quality", "f8", "f32"]
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="speed: small shapes, to see that it runs")
    parser.add_argument("--latents", nargs="+", default=list(DIFFUSION), choices=list(DIFFUSION))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--each", type=int, default=600, help="crops of each photograph")
    parser.add_argument("--drawn", type=int, default=4096)
    parser.add_argument("--judge-steps", type=int, default=600)
    parser.add_argument("--autoencoder-steps", type=int, default=1000)
    parser.add_argument("--autoencoder-seed", type=int, default=0)
    parser.add_argument("--times-channels", type=int, default=1, help="so many times as many latent channels")
    parser.add_argument("--name", default="fewer_tokens_quality", help="of the result's file")
    parser.add_argument("--autoencoder-batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--kept", type=Path, help="folder for autoencoders trained beforehand")
    parser.add_argument(
        "--published-widths", action="store_true", help="of the autoencoders, a quarter of them"
    )
    parser.add_argument("--fresh", action="store_true", help="autoencoders: cut crops anew at every step")
    parser.add_argument("--quiet", action="store_true", help="autoencoders: blocks start silent")
    parser.add_argument("--upright", action="store_true", help="with --fresh: neither turned nor coloured")
    parser.add_argument("--beforehand", type=int, default=0, help="with --fresh: draw so many crops once")
    parser.add_argument("--error", default="l1", choices=["l1", "squared", "decibel"], help="autoencoders")
    parser.add_argument("--orthogonal", action="store_true", help="autoencoders: matrices by Muon's steps")
    parser.add_argument("--rate", type=float, default=1e-3, help="autoencoders: learning rate")
    parser.add_argument("--form", default="as written", choices=["as written", "fastest"])
    parser.add_argument("--one-scale", action="store_true", help="latents: one factor for all channels")
    parser.add_argument("--fit", type=float, default=0, help="autoencoders: steps that fit so many seconds")
    parser.add_argument("--seconds", type=float, default=1e9, help="with --fit: for everything")
    parser.add_argument("--leaves", type=float, default=0.0, help="with --fresh: this share is dead leaves")
    parser.add_argument("--largest", type=int, default=2048, help="with --fresh: shrink photographs to this")
    parser.add_argument("--refine-steps", type=int, default=0, help="autoencoders: of phase 3, with a critic")
    parser.add_argument("--refine-depth", type=int, default=2, help="stages of the decoder that it trains")
    parser.add_argument("--refine-all-but", type=int, default=0, help="instead: all but so many deepest")
    parser.add_argument("--refine-averaged", type=int, default=0, help="keep averages over so many steps")
    parser.add_argument("--without-cudnn", action="store_true")
    parser.add_argument("--pool", type=Path, help="folder with crops drawn beforehand")
    options = parser.parse_args()
    torch.backends.cudnn.enabled = not options.without_cudnn
    for ratio in (8, 32):
        if f"f{ratio}" in options.parts:
            autoencoder_alone(ratio, options)
    if "speed" in options.parts:
        speed(options)
    if "quality" in options.parts:
        pictures_quality(options)


if __name__ == "__main__":
    main()
