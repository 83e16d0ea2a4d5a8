"""Training: losses fall, frozen tensors stay bit-identical, resuming changes nothing, ranks agree."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewer.core.device import isolated_randomness
from fewer.core.errors import CapacityError, ConfigError
from fewer.generate.autoencoder import DCAutoencoder
from fewer.generate.autoencoder.phases import PhasePlan
from fewer.generate.autoencoder.training import (
    TrainingOptions,
    keep_prefix,
    measure_latents,
    train_autoencoder,
    training_losses,
)
from tests.generate.autoencoder.conftest import tiny_config

OPTIONS = TrainingOptions(ema_decay=None, critic_width=8, warmup=0)


def draw(count: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """Smooth random pictures: 4 x 4 noise, enlarged."""
    noise = torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(noise, size=(side, side), mode="bilinear")


def model_of(name: str = "no_latent_shortcuts", **changes: object) -> DCAutoencoder:
    with isolated_randomness(0):
        return DCAutoencoder(tiny_config(name, **changes))


def plan(phase: int, steps: int = 3, **changes: object) -> PhasePlan:
    return PhasePlan(phase=phase, steps=steps, crop=24 if phase == 3 else 16, batch=4, rate=2e-3, **changes)


def state(model: DCAutoencoder) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_phase_one_learns(optimizer: str) -> None:
    model = model_of(encoder_out_shortcut=True, decoder_in_shortcut=True)
    options = replace(OPTIONS, optimizer=optimizer)
    losses = train_autoencoder(model, draw, [plan(1, 60)], options)[1].losses
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert not any(parameter.requires_grad for parameter in model.parameters()) and not model.training


@pytest.mark.parametrize("name", ["no_latent_shortcuts", "batch_norm_attention"])
def test_phase_three_moves_the_head_alone(name: str) -> None:
    """Every other tensor, buffers included, and so every latent, is bit-identical (§7.5)."""
    model = model_of(name, in_channels=3)
    before = state(model)
    image = draw(2, 16, torch.Generator())
    latents = model.eval().encode(image)
    train_autoencoder(model, draw, [plan(3, 3, betas=(0.5, 0.9))], replace(OPTIONS, ema_decay=0.5))
    assert torch.equal(model.encode(image), latents)
    first = "decoder.up_blocks.0." if name == "batch_norm_attention" else "decoder.up_blocks.1."
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed and all(key.startswith((first, "decoder.norm_out", "decoder.conv_out")) for key in changed)


def test_phase_two_moves_the_middle_alone() -> None:
    model = model_of()
    before = state(model)
    train_autoencoder(model, draw, [plan(2, 2, depth=0)], OPTIONS)
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed == {
        f"{side}.{kind}" for side in ("encoder.conv_out", "decoder.conv_in") for kind in ("weight", "bias")
    }


def test_the_two_players_do_not_share_gradients() -> None:
    """The critic's parameters learn from judging alone, the head from being judged alone."""
    from fewer.generate.autoencoder.discriminator import PatchDiscriminator
    from fewer.generate.autoencoder.phases import prepare

    gradients = []
    for weight in (0.0, 5.0):
        model = model_of()
        prepare(model, 3, 1)
        with isolated_randomness(1):
            critic = PatchDiscriminator(3, 8)
        options = replace(OPTIONS, adversarial_weight=weight)
        image = draw(2, 24, torch.Generator().manual_seed(3))
        training_losses(model, critic, image, options, torch.Generator())["loss"].backward()
        gradients.append(
            (model.decoder.conv_out.conv.weight.grad.clone(), [p.grad.clone() for p in critic.parameters()])
        )
    assert not torch.equal(gradients[0][0], gradients[1][0])
    assert all(torch.equal(a, b) for a, b in zip(gradients[0][1], gradients[1][1], strict=True))


def test_adaptive_weight_is_finite_and_positive() -> None:
    model = model_of()
    train_autoencoder(model, draw, [plan(3, 2)], replace(OPTIONS, adaptive_adversarial=True))
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


@pytest.mark.parametrize(("stop", "optimizer"), [(1, "muon"), (4, "adamw"), (7, "muon")])
def test_resuming_is_bit_identical_through_all_phases(stop: int, optimizer: str, tmp_path: Path) -> None:
    """Stopped in phase 1, 2 or 3 and resumed: the weights of the run that was not stopped."""
    plans = [plan(1), plan(2), plan(3)]
    options = replace(OPTIONS, checkpoint_folder=tmp_path / "a", checkpoint_every=2, ema_decay=0.1)
    options = replace(options, optimizer=optimizer)
    whole = model_of()
    train_autoencoder(whole, draw, plans, options)

    calls = 0

    def draw_and_stop(count: int, side: int, generator: torch.Generator) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > stop:
            raise KeyboardInterrupt
        return draw(count, side, generator)

    options = replace(options, checkpoint_folder=tmp_path / "b")
    with pytest.raises(KeyboardInterrupt):
        train_autoencoder(model_of(), draw_and_stop, plans, options)
    again = model_of()
    train_autoencoder(again, draw, plans, replace(options, resume=True))
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in whole.state_dict().items())


def test_a_resumed_run_may_not_change_what_led_to_its_phase(tmp_path: Path) -> None:
    """More of phase 1 would be lost under the phase 2 that followed: refused at once, like other settings."""
    options = replace(OPTIONS, checkpoint_folder=tmp_path, checkpoint_every=2)
    train_autoencoder(model_of(), draw, [plan(1, 2), plan(2, 1)], options)
    options = replace(options, resume=True)
    train_autoencoder(model_of(), draw, [plan(1, 2), plan(2, 2)], options)  # more of the last phase
    for plans, other, words in (
        ([plan(1, 3), plan(2, 2)], options, "steps of phase 1 2, not 3"),
        ([plan(2, 2)], options, "steps of phase 1 2, not 0"),
        ([plan(1, 2)], replace(options, seed=5), "seed 0, not 5"),
        ([plan(1, 2), replace(plan(2, 2), depth=0)], options, "depth 1, not 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            train_autoencoder(model_of(), draw, plans, other)
    assert [path.name for path in (tmp_path / "phase-1").iterdir()] == ["step-00000002.safetensors"]


def test_bfloat16_and_checkpointing_train_too() -> None:
    options = replace(OPTIONS, dtype=torch.bfloat16, gradient_checkpointing=True)
    model = model_of("multi_head_multi_scale")
    losses = train_autoencoder(model, draw, [plan(1, 2)], options)[1].losses
    assert all(loss == loss for loss in losses)
    assert next(model.parameters()).dtype == torch.float32


def test_structured_latents_keep_a_drawn_prefix() -> None:
    latents = torch.rand(2, 8, 3, 3) + 1
    seen = set()
    for seed in range(20):
        kept = keep_prefix(latents, (2, 4, 8), torch.Generator().manual_seed(seed))
        channels = int((kept[0, :, 0, 0] != 0).sum())
        seen.add(channels)
        assert torch.equal(kept[:, :channels], latents[:, :channels]) and not kept[:, channels:].any()
    assert seen == {2, 4, 8}
    assert torch.equal(keep_prefix(latents, (), torch.Generator()), latents)


def test_structured_training_makes_prefixes_useful() -> None:
    """After training with prefixes, half of the channels reconstruct better than without such training."""
    errors = {}
    image = draw(16, 16, torch.Generator().manual_seed(9))
    for prefixes in ((2, 4), ()):
        model = model_of(latent_prefixes=prefixes)
        train_autoencoder(model, draw, [plan(1, 60)], OPTIONS)
        latents = model.encoder(image)
        latents[:, 2:] = 0
        errors[bool(prefixes)] = float((model.decoder(latents) - image).abs().mean())
    assert errors[True] < errors[False]


def test_measured_latents_have_unit_variance() -> None:
    model = model_of().eval()
    measure_latents(model, draw, 16, count=64, seed=1)
    latents = model.encode(draw(64, 16, torch.Generator().manual_seed(1)))
    assert (latents.mean((0, 2, 3)).abs() < 0.2).all() and ((latents.std((0, 2, 3)) - 1).abs() < 0.2).all()
    raw = model.unscale(latents)
    assert abs(1 / model.config.scaling_factor - float(raw.square().mean().sqrt())) < 0.1


def test_bad_plans_say_what_fits() -> None:
    with pytest.raises(ConfigError, match="multiples of 4 fit: 16, 20"):
        train_autoencoder(model_of(), draw, [replace(plan(1), crop=18)], OPTIONS)
    with pytest.raises(ConfigError, match="at least 24"):
        train_autoencoder(model_of(), draw, [replace(plan(3), crop=16)], OPTIONS)


def test_crops_that_no_memory_holds_are_refused_before_the_first_step() -> None:
    with pytest.raises(CapacityError, match="phase 2 are 8192 px, 4096 a step"):
        train_autoencoder(model_of(), draw, [plan(1), replace(plan(2), crop=8192, batch=4096)], OPTIONS)
