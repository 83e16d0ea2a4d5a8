"""The scenes' autoencoder learns, and its latents have zero mean and unit spread."""

import copy
from dataclasses import replace

import torch

from fewer.core.train import FitResult
from fewer.generate.scenes.autoencode import (
    compile_blocks,
    finish,
    fit_plan,
    normalised,
    reconstruction_psnr,
    train_autoencoder,
)
from fewer.generate.scenes.pool import draw_scenes, to_tensor
from fewer.generate.scenes.presets import preset
from fewer.generate.scenes.table import draw_table


def test_however_short_a_run_its_average_lies_between_the_weights_it_had() -> None:
    for steps in (1, 3, 4, 80, 100_000):
        training = replace(preset("emoji-test").autoencoder_training, steps=steps)
        plan = fit_plan(training, torch.device("cpu"), warmup=200, checkpoints=None, resume=False, seed=0)
        assert 0 <= plan.ema_decay < 1 and plan.warmup <= max(0, steps - 1)


def test_blocks_are_compiled_and_finishing_undoes_it(small_autoencoder) -> None:
    model = copy.deepcopy(small_autoencoder)
    compile_blocks(model, model)
    blocks = [block for stage in model.decoder.up_blocks for block in stage.children()]
    assert blocks and all(block._compiled_call_impl is not None for block in blocks)
    part = model.encoder.conv_in
    averages = {name: torch.full_like(parameter, 0.5) for name, parameter in part.named_parameters()}
    finish(part, FitResult(1, [], 0.0, {"one": averages}), model)
    assert all(block._compiled_call_impl is None for block in blocks)
    assert all(bool((parameter == 0.5).all()) for parameter in part.parameters())


def test_it_learns_and_normalises(renderer, vocabulary, tmp_path) -> None:
    chosen = preset("emoji-test")
    training = replace(chosen.autoencoder_training, steps=80, batch=4, learning_rate=4e-3)
    plan = replace(chosen, autoencoder_training=training, scenes=24)
    pictures = to_tensor(renderer.pictures(draw_scenes(vocabulary, 8, "held-out", 3)))
    table = draw_table(vocabulary, 24, "train", 1)
    short = replace(plan, autoencoder_training=replace(training, steps=1))
    before = reconstruction_psnr(train_autoencoder(short, renderer, table), pictures)
    model = train_autoencoder(plan, renderer, table, checkpoints=tmp_path)
    assert reconstruction_psnr(model, pictures) > before + 2
    seen = to_tensor(renderer.pictures(table.scenes()))
    latents = model.encode(seen)
    assert torch.allclose(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=0.02)
    assert torch.allclose(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=0.02)


def test_normalising_changes_no_reconstruction(small_autoencoder) -> None:
    pictures = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain = small_autoencoder.decode(small_autoencoder.encode(pictures))
    scaled = normalised(small_autoencoder, pictures)
    assert torch.allclose(scaled.decode(scaled.encode(pictures)), plain, atol=1e-4)
    latents = scaled.encode(pictures)
    assert torch.allclose(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=0.02)
