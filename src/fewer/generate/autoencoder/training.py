"""Training a DC-AE: three phases, each a call of `core.train.fit` (see phases.py for what each trains).

A step takes crops, reconstructs them, and adds up the losses: pixels, gradients and a Laplacian pyramid
(or LPIPS from a weight file), in phase 3 also a critic's judgement. With structured latents every step
draws how many leading channels the decoder sees. After the last phase the latents' mean and spread per
channel are measured, so that `encode` gives unit variance.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewer.core.checkpoint import latest_facts
from fewer.core.device import require_memory
from fewer.core.errors import ConfigError
from fewer.core.progress import Progress, SilentProgress
from fewer.core.train import FitPlan, FitResult, check_identity, fit, rank, world_size
from fewer.generate.autoencoder.capacity import peak_bytes
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.autoencoder.discriminator import (
    SMALLEST_JUDGED,
    PatchDiscriminator,
    critic_loss,
    generator_loss,
)
from fewer.generate.autoencoder.losses import ReconstructionWeights, reconstruction_loss
from fewer.generate.autoencoder.orthogonal_steps import Muon
from fewer.generate.autoencoder.perceptual import LPIPS
from fewer.generate.autoencoder.phases import PhasePlan, prepare

logger = logging.getLogger(__name__)

Crops = Float[Tensor, "batch channels side side"]
Draw = Callable[[int, int, torch.Generator], Tensor]
"""(count, side, generator) -> crops in [-1, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """What all phases share."""

    seed: int = 0
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    """bfloat16 runs the networks under autocast; parameters stay fp32."""
    weights: ReconstructionWeights = field(default_factory=ReconstructionWeights)
    perceptual: LPIPS | None = None
    """Takes the place of the gradient and pyramid terms."""
    perceptual_weight: float = 0.25
    adversarial_weight: float = 0.1
    adaptive_adversarial: bool = False
    """Balance the critic by gradient norms at the last layer, times 0.5, in place of the fixed weight."""
    critic_width: int = 64
    ema_decay: float | None = 0.999
    warmup: int = 100
    schedule: Literal["constant", "cosine"] = "constant"
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Muon (orthogonal_steps.py) for phases 1 and 2; phase 3 is a game of two players and keeps AdamW."""
    gradient_checkpointing: bool = False
    checkpoint_folder: Path | None = None
    checkpoint_every: int = 500
    resume: bool = False
    identity: Mapping[str, str] = field(default_factory=dict)
    """What else a resumed run must share with the one that was started, by name (the pictures, say)."""


def train_autoencoder(
    model: DCAutoencoder,
    draw: Draw,
    plans: Sequence[PhasePlan],
    options: TrainingOptions | None = None,
    progress: Progress | None = None,
) -> dict[int, FitResult]:
    """Runs the phases in order on `model`, in place; `draw(count, side, generator)` gives crops.

    Raises `ConfigError` for a crop that is no multiple of the ratio or a batch that the ranks cannot share,
    `CapacityError` for crops that even a pass without gradients has no memory for.
    """
    options, progress = options or TrainingOptions(), progress or SilentProgress()
    for plan in plans:
        _check_plan(model, plan)
        _check_memory(model, plan, options)
    # A phase goes on from what those before it left: more of theirs would be lost by resuming it.
    steps = {plan.phase: plan.steps for plan in plans}
    alone = {}
    for plan in plans:
        before = {f"steps of phase {phase}": str(steps.get(phase, 0)) for phase in range(1, plan.phase)}
        alone[plan.phase] = replace(options, identity={**options.identity, **before})
        if options.resume and options.checkpoint_folder:  # said now, not when an earlier phase has ended
            folder = options.checkpoint_folder / f"phase-{plan.phase}"
            check_identity(latest_facts(folder), _identity(plan, alone[plan.phase]))
    model.to(options.device)
    results = {}
    for plan in plans:
        progress.say(f"phase {plan.phase}: {plan.steps} steps on crops of {plan.crop} px")
        results[plan.phase] = run_phase(model, draw, plan, alone[plan.phase], progress)
    model.requires_grad_(False).eval()
    return results


def run_phase(
    model: DCAutoencoder, draw: Draw, plan: PhasePlan, options: TrainingOptions, progress: Progress
) -> FitResult:
    """One phase: freezes, trains, and leaves the averaged weights in the model."""
    parameters = prepare(model, plan.phase, plan.depth)
    model.encoder.gradient_checkpointing = model.decoder.gradient_checkpointing = (
        options.gradient_checkpointing
    )
    modules: dict[str, nn.Module] = {"model": model}
    groups = [{"params": parameters}]
    critic = None
    if plan.phase == 3:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            critic = PatchDiscriminator(model.config.in_channels, options.critic_width).to(options.device)
        modules["critic"] = critic
        groups.append({"params": list(critic.parameters())})
    kind = Muon if options.optimizer == "muon" and plan.phase != 3 else torch.optim.AdamW
    optimizer = kind(groups, lr=plan.rate, betas=plan.betas, weight_decay=plan.weight_decay)
    folder = options.checkpoint_folder
    fit_plan = FitPlan(
        steps=plan.steps,
        schedule=options.schedule,
        warmup=min(options.warmup, plan.steps // 10),
        # Adversarial gradients are balanced between two players; one common norm would couple them.
        clip_norm=None if plan.phase == 3 else 1.0,
        ema_decay=options.ema_decay,
        checkpoint_folder=folder / f"phase-{plan.phase}" if folder else None,
        checkpoint_every=options.checkpoint_every,
        resume=options.resume,
        seed=options.seed + plan.phase,
        identity=_identity(plan, options),
    )

    def batch_at(_: int, generator: torch.Generator) -> Tensor:
        # Every rank draws the whole batch and takes its share: the same losses as one process.
        return draw(plan.batch, plan.crop, generator)[rank() :: world_size()].to(options.device)

    def step(batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return training_losses(model, critic, batch, options, generator)

    result = fit(fit_plan, modules, optimizer, step, batch_at, progress)
    _take_averages(model, result, options, plan.steps)
    return result


def _identity(plan: PhasePlan, options: TrainingOptions) -> dict[str, str]:
    """What decides the result of a phase and may not change when it is resumed, by name."""
    facts = {name: str(getattr(plan, name)) for name in ("crop", "batch", "rate")}
    facts |= {"seed": str(options.seed), "lpips": "on" if options.perceptual is not None else "off"}
    if plan.phase != 1:
        facts["depth"] = str(plan.depth)
    if plan.phase == 3:
        adaptive = options.adaptive_adversarial
        facts["adversarial weight"] = "adaptive" if adaptive else str(options.adversarial_weight)
    return {**options.identity, **facts}


def training_losses(
    model: DCAutoencoder,
    critic: PatchDiscriminator | None,
    image: Crops,
    options: TrainingOptions,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """The losses of one step; `loss` is the sum that is minimised by autoencoder and critic at once.

    The two players share one backward pass: the critic sees a detached reconstruction, and the
    autoencoder is judged by the critic's parameters as constants.
    """
    with torch.autocast(image.device.type, torch.bfloat16, enabled=options.dtype == torch.bfloat16):
        latents = keep_prefix(model.encoder(image), model.config.latent_prefixes, generator)
        reconstruction = model.decoder(latents)
    reconstruction = reconstruction.float()
    if options.perceptual is not None:
        pixels = (reconstruction - image).abs().mean()
        rest = options.perceptual_weight * options.perceptual(reconstruction, image)
        content = options.weights.pixels * pixels + rest
    else:
        content = reconstruction_loss(reconstruction, image, options.weights)
    figures = {"loss": content, "reconstruction": content.detach()}
    if critic is not None:
        frozen = {name: parameter.detach() for name, parameter in critic.named_parameters()}
        adversarial = generator_loss(torch.func.functional_call(critic, frozen, (reconstruction,)))
        weight = _adversarial_weight(model, content, adversarial, options)
        judged = critic_loss(critic(image), critic(reconstruction.detach()))
        figures["loss"] = content + weight * adversarial + judged
        figures |= {"critic": judged.detach(), "adversarial": adversarial.detach()}
    return figures


def keep_prefix(
    latents: Float[Tensor, "batch latent_channels lat_h lat_w"],
    prefixes: tuple[int, ...],
    generator: torch.Generator,
) -> Float[Tensor, "batch latent_channels lat_h lat_w"]:
    """Structured latents: keeps a drawn number of leading channels and sets the others to zero."""
    if not prefixes:
        return latents
    kept = prefixes[int(torch.randint(len(prefixes), (), generator=generator))]
    mask = torch.arange(latents.shape[1], device=latents.device) < kept
    return latents * mask[:, None, None]


def _adversarial_weight(
    model: DCAutoencoder, content: Tensor, adversarial: Tensor, options: TrainingOptions
) -> Tensor | float:
    """Fixed, or 0.5 * |gradient of content| / |gradient of adversarial| at the last convolution."""
    if not options.adaptive_adversarial:
        return options.adversarial_weight
    last = model.decoder.conv_out
    weight = last.weight if isinstance(last, nn.Conv2d) else last.conv.weight
    of_content, of_adversarial = (
        torch.autograd.grad(loss, weight, retain_graph=True)[0].norm() for loss in (content, adversarial)
    )
    return (0.5 * (of_content / (of_adversarial + 1e-4)).clamp(max=1e4)).detach()


@torch.no_grad()
def measure_latents(
    model: DCAutoencoder, draw: Draw, side: int, count: int = 1024, batch: int = 16, seed: int = 0
) -> None:
    """Writes into the model's config how to scale its latents: per channel, and 1 / RMS as one factor.

    Uses `count` crops of `side` pixels (the paper: at least 1,000 pictures).
    """
    device = next(model.parameters()).device
    total = torch.zeros(2, model.config.latent_channels, dtype=torch.float64)
    pixels = 0
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, batch):
        raw = model.encoder(draw(min(batch, count - start), side, generator).to(device)).double().cpu()
        total += torch.stack([raw.sum((0, 2, 3)), raw.square().sum((0, 2, 3))])
        pixels += raw.numel() // raw.shape[1]
    mean, square = total / pixels
    spread = (square - mean.square()).clamp(min=1e-12).sqrt()
    model.config = replace(
        model.config,
        scaling_factor=float(1 / square.mean().sqrt().clamp(min=1e-6)),
        latents_mean=tuple(mean.tolist()),
        latents_std=tuple(spread.tolist()),
    )


def _take_averages(model: DCAutoencoder, result: FitResult, options: TrainingOptions, steps: int) -> None:
    """Puts the moving averages into the model, unless the run was too short for them to have moved."""
    averages = result.averages.get("model", {})
    if options.ema_decay is None or steps * (1 - options.ema_decay) < 3:
        return
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(averages[name])


def _check_memory(model: DCAutoencoder, plan: PhasePlan, options: TrainingOptions) -> None:
    """Training takes more than the larger of the two networks' passes; what lacks that is not begun."""
    pixels = (plan.batch // world_size(), model.config.in_channels, plan.crop, plan.crop)
    networks, itemsize = (model.encoder, model.decoder), options.dtype.itemsize
    needed = max(peak_bytes(network, pixels, itemsize, None) for network in networks)
    advice = f"crops of phase {plan.phase} are {plan.crop} px, {plan.batch} a step: try smaller or fewer ones"
    require_memory(needed, torch.device(options.device), advice)


def _check_plan(model: DCAutoencoder, plan: PhasePlan) -> None:
    ratio = model.config.spatial_compression_ratio
    if plan.crop % ratio:
        low = max(plan.crop // ratio, 1) * ratio
        raise ConfigError(
            f"crops of phase {plan.phase} are {plan.crop} px; multiples of {ratio} fit: {low}, {low + ratio}"
        )
    if plan.phase == 3 and plan.crop < SMALLEST_JUDGED:
        raise ConfigError(f"phase 3 needs crops of at least {SMALLEST_JUDGED} px, not {plan.crop}")
    if plan.batch % world_size():
        raise ConfigError(
            f"the batch of phase {plan.phase} is {plan.batch}; {world_size()} processes must share it"
        )
