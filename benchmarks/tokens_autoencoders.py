"""The autoencoders of fewer_tokens.py: f8 and f32 of one design, trained alike on 128-px crops, then refined
against a critic.
"""
# bench: by hand: fewer_tokens.py trains with it

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from crop_pool import PHOTOS, crop_pool
from fresh_crops import FreshCrops
from graphed import Averaged, Trainee, keep_within, train_side_by_side
from residual_autoencoding import build as build_autoencoder
from residual_autoencoding import small_config
from residual_curve import QUARTER, WIDTHS
from small_autoencoders import Draw, autoencoder_trainee, beforehand, cut_fresh, from_pool
from step_forms import FORMS, Form, put_in_form
from torch import Tensor, nn

from fewer.core.device import isolated_randomness
from fewer.core.tensors import read_tensors, write_tensors
from fewer.generate.autoencoder import DCAutoencoder
from fewer.generate.autoencoder.discriminator import PatchDiscriminator
from fewer.generate.autoencoder.phases import prepare
from fewer.generate.autoencoder.quiet_start import start_quietly
from fewer.generate.autoencoder.training import TrainingOptions, training_losses


def train_fitted(trainees: list[Trainee], seconds: float) -> None:
    """Prepared trainees to their ends; with `seconds`, these are kept though others use the device."""
    began = time.monotonic()
    look = (lambda: keep_within(trainees, began, seconds)) if seconds else None
    train_side_by_side(trainees, prepared=True, look=look)


def autoencoder_to_train(
    ratio: int, model: DCAutoencoder, cut: Draw, options: argparse.Namespace, form: Form = FORMS[0]
) -> Trainee:
    put_in_form(model, form)
    shaped = (lambda g: cut(g).to(memory_format=torch.channels_last)) if form.channels_last else cut
    return autoencoder_trainee(
        f"f{ratio}", model, shaped, options.rate, options.autoencoder_steps, options.autoencoder_seed,
        options.error, 0.02, options.orthogonal,
    )  # fmt: skip


def fresh_autoencoder(ratio: int, options: argparse.Namespace) -> DCAutoencoder:
    widths = QUARTER if options.published_widths else WIDTHS
    config = small_config(ratio, widths, True)
    config = replace(config, latent_channels=options.times_channels * config.latent_channels)
    model = build_autoencoder(config, True, False, options.autoencoder_seed)
    return (start_quietly(model) if options.quiet else model).to(options.device)


def crops_to_train_on(pool: Tensor, options: argparse.Namespace) -> Draw:
    """For the autoencoders: from the pool, or cut anew at every step."""
    if not options.fresh:
        return from_pool(pool, options.autoencoder_batch)
    whole = FreshCrops(PHOTOS, options.device, largest=options.largest, upright=options.upright)
    if not options.beforehand:
        return cut_fresh(whole, options.autoencoder_batch, 128, options.leaves)
    generator = torch.Generator(options.device).manual_seed(0)
    many = cut_fresh(whole, min(128, options.beforehand), 128, options.leaves)
    return from_pool(beforehand(many, options.beforehand, generator), options.autoencoder_batch)


def refine(
    models: dict[int, DCAutoencoder],
    draw: Draw,
    options: argparse.Namespace,
    distance: Callable[[DCAutoencoder], float] | None = None,
) -> None:
    """Phase 3 of the paper for each: the decoder's head against a critic of its own. No latent changes.

    `distance`, on crops to choose with, is asked before and every 150 steps; the best weights are kept. With
    `--refine-averaged` it is the moving averages of the weights that are asked for, and kept.
    """
    if not options.refine_steps:
        return
    device = options.device
    settings = TrainingOptions(device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    trainees = []
    for ratio, model in models.items():
        depth = options.refine_depth
        if options.refine_all_but:
            depth = model.config.stages - options.refine_all_but
        head = prepare(model, 3, depth)
        with isolated_randomness(0):
            critic = PatchDiscriminator(3).to(device)

        def loss(
            generator: torch.Generator, model: DCAutoencoder = model, critic: PatchDiscriminator = critic
        ) -> Tensor:
            return training_losses(model, critic, draw(generator), settings, generator)["loss"]

        groups = [{"params": [*head, *critic.parameters()], "weight_decay": 0.01}]
        trainees.append(
            Averaged(
                name=f"f{ratio} refined", model=model, loss=loss, groups=groups, rate=2e-4,
                steps=options.refine_steps, warmup=min(50, options.refine_steps // 2), final_rate=0.1, seed=1,
                betas=(0.5, 0.9), clip=None, captured=False, averaged=options.refine_averaged or 1,
            )
        )  # fmt: skip
    best: dict[str, tuple[float, int, dict[str, Tensor]]] = {}

    def look() -> None:
        for trainee in trainees:
            if distance is None or trainee.done % 150 not in (0, trainee.steps % 150):
                continue
            with trainee.averages_in_place() as model:
                found = distance(model)  # type: ignore[arg-type]
                weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            print(f"{trainee.name}, {trainee.done} steps: {found:.2f} on crops to choose with", flush=True)
            if trainee.name not in best or found < best[trainee.name][0]:
                best[trainee.name] = found, trainee.done, weights

    for trainee in trainees:
        trainee.prepare()
    look()
    train_side_by_side(trainees, prepared=True, look=look)
    for trainee in trainees:
        if trainee.name in best:
            trainee.model.load_state_dict(best[trainee.name][2])
            print(f"{trainee.name}: the weights after {best[trainee.name][1]} steps are kept", flush=True)


def load_kept(model: nn.Module, ratio: int, options: argparse.Namespace) -> bool:
    """Whether this autoencoder was trained before, by `--parts f8` or `f32`, and is now in the model."""
    path = (options.kept or Path()) / f"f{ratio}.safetensors"
    if not path.exists():
        return False
    model.load_state_dict(read_tensors(path))
    model.requires_grad_(False).eval()
    return True


def autoencoder_alone(ratio: int, options: argparse.Namespace) -> None:
    """Trains one autoencoder and keeps it."""
    began = time.monotonic()
    pool = crop_pool(128, options.each, 0, folder=options.pool)[0][: -options.drawn].to(options.device)
    model = fresh_autoencoder(ratio, options)
    cut = crops_to_train_on(pool, options)
    trainee = autoencoder_to_train(ratio, model, cut, options)
    train_side_by_side([trainee])
    refine({ratio: model}, cut, options)
    write_tensors(options.kept / f"f{ratio}.safetensors", model.state_dict())
    print(f"f{ratio} after {time.monotonic() - began:.0f} s, loss {float(trainee.history[-50:].mean()):.4f}")
