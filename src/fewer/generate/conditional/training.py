"""Flow matching for class-conditional networks: x_t = (1 - t) x + t e, target e - x, t = sigmoid(normal)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewer.core.device import seeded
from fewer.core.errors import ConfigError
from fewer.core.progress import Progress
from fewer.core.ranks import rank, world_size
from fewer.core.train import FitPlan, FitResult, fit
from fewer.generate.conditional.build import params_of
from fewer.generate.conditional.pictures import LabelledPictures
from fewer.generate.sampling.schedule import TRAINING_LEVELS

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """How to train. Defaults are ours; the paper's recipe (batch 1024, rate 1e-4) is for ImageNet."""

    steps: int = 10_000
    batch: int = 64
    rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 100
    label_dropout: float = 0.1
    """Share of samples that are trained without their class, for guidance."""
    prefixes: tuple[int, ...] = ()
    """Structured latents (DC-AE 1.5): each step trains on so many leading channels, drawn from these."""
    ema_decay: float | None = 0.999
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    checkpoint_folder: Path | None = None
    checkpoint_every: int = 500
    resume: bool = False
    seed: int = 0
    identity: Mapping[str, str] = field(default_factory=dict)
    """What else a resumed run must share with the one that was started, by name (the pictures, say)."""


_DECISIVE = ("batch", "rate", "weight_decay", "label_dropout", "prefixes")
"""Settings that a resumed run shares with the one that was started."""


def train_class_conditional(
    model: nn.Module, pictures: LabelledPictures, options: TrainingOptions, progress: Progress | None = None
) -> FitResult:
    """Trains in place. With an EMA the caller decides whether to take it: `use_average`.

    Joined ranks share each batch and end where one process does, up to rounding. Raises `ConfigError` for a
    batch that they cannot share.
    """
    if options.batch % world_size():
        raise ConfigError(f"the batch is {options.batch}; {world_size()} processes must share it")
    device = torch.device(options.device)
    model.to(device).train()
    optimizer = torch.optim.AdamW(
        parameter_groups(model, options.weight_decay), lr=options.rate, betas=(0.9, 0.99)
    )
    plan = FitPlan(
        steps=options.steps, schedule="cosine", warmup=min(options.warmup, options.steps // 2),
        final_rate=0.05, clip_norm=1.0, ema_decay=options.ema_decay,
        checkpoint_folder=options.checkpoint_folder, checkpoint_every=options.checkpoint_every,
        resume=options.resume, seed=options.seed,
        identity={**options.identity, **{name: str(getattr(options, name)) for name in _DECISIVE}},
    )  # fmt: skip

    def batch_at(index: int, generator: torch.Generator) -> Batch:
        rows = torch.randint(len(pictures.labels), (options.batch,), generator=generator)
        rows = rows[rank() :: world_size()]
        return pictures.images[rows].to(device), pictures.labels[rows].to(device)

    step = flow_matching_step(model, options)
    return fit(plan, {"model": model}, optimizer, step, batch_at, progress)


def flow_matching_step(
    model: nn.Module, options: TrainingOptions
) -> Callable[[Batch, torch.Generator], Tensor]:
    """Mean squared error of the velocity; some labels are replaced by "no class"."""
    classes = params_of(model).classes

    def step(batch: Batch, generator: torch.Generator) -> Tensor:
        images, labels = batch
        # Every rank draws for the whole batch and takes its share: no two pictures get the same noise.
        share, whole = slice(rank(), None, world_size()), len(images) * world_size()
        level = torch.sigmoid(torch.randn(whole, generator=generator))[share].to(images.device)
        noise = torch.randn(whole, *images.shape[1:], generator=generator)[share].to(images.device)
        dropped = (torch.rand(whole, generator=generator) < options.label_dropout)[share]
        labels = labels.masked_fill(dropped.to(labels.device), classes)
        kept = drawn_prefix(options.prefixes, generator)
        with torch.autocast(images.device.type, options.dtype, enabled=options.dtype != torch.float32):
            return flow_error(model, images, labels, level, noise, kept).mean()

    return step


def drawn_prefix(prefixes: tuple[int, ...], generator: torch.Generator) -> int | None:
    """One of these, all alike; None without any."""
    if not prefixes:
        return None
    return prefixes[int(torch.randint(len(prefixes), (), generator=generator))]


def flow_error(
    model: Callable[..., Tensor],
    images: Tensor,
    labels: Tensor,
    level: Tensor,
    noise: Tensor,
    kept: int | None = None,
) -> Float[Tensor, " batch"]:
    """Mean squared velocity error of each sample at its noise level.

    With `kept` the network sees, and is judged on, so many leading channels; the others are zero (augmented
    diffusion training of DC-AE 1.5: the first channels, which hold structure, are learned sooner).
    """
    mixing = level.view(-1, 1, 1, 1)
    noisy = (1 - mixing) * images + mixing * noise
    if kept is not None:
        noisy = noisy * (torch.arange(images.shape[1], device=images.device) < kept)[:, None, None]
    velocity = model(noisy, TRAINING_LEVELS * level, labels)[:, : images.shape[1]].float()
    return (velocity - (noise - images))[:, :kept].square().flatten(1).mean(1)


@torch.no_grad()
def validation_error(
    model: nn.Module, pictures: LabelledPictures, batch: int = 256, limit: int = 2000
) -> float:
    """Flow error on held-out pictures at fixed noise and evenly spread noise levels."""
    device = next(model.parameters()).device
    model.eval()
    count = min(limit, len(pictures.labels))
    noise = torch.randn(pictures.images[:count].shape, generator=seeded(0, 77))
    levels = (torch.arange(count) + 0.5) / count
    levels = levels[torch.randperm(count, generator=seeded(0, 78))]
    total = 0.0
    for rows in torch.arange(count).split(batch):
        parts = (pictures.images[rows], pictures.labels[rows], levels[rows], noise[rows])
        total += float(flow_error(model, *(part.to(device) for part in parts)).sum())
    return total / count


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices decay; biases, norms, embeddings and the generators' last layer don't."""
    decay, free = [], []
    for name, parameter in model.named_parameters():
        generated = name.startswith("can.") and ".b." in name
        matrix = parameter.ndim >= 2 and "embedding" not in name and "_emb" not in name
        (decay if matrix and not generated else free).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


@torch.no_grad()
def use_average(model: nn.Module, result: FitResult) -> None:
    """Replaces the weights by their moving average; for runs long enough to forget the start."""
    for name, parameter in model.named_parameters():
        parameter.copy_(result.averages["model"][name].to(parameter.dtype))
