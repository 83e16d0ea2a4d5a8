"""A few-step edition: a LoRA with which one to four jumps give what the guided model gives in twenty steps.

Every jump starts at a level of `few_step_levels`. The first starts from noise; the others from where the
student's own first jump leads, so that it learns to mend its own mistakes. The target of a jump is where the
guided teacher arrives from the same latents by many steps of Flow-DPM: guidance and solver are distilled at
once, and nothing is needed but prompts. Targets cost most, so each is learned from several times: a round
makes a pool of pairs, then trains on it. (Trajectory regression as in arXiv 2209.14577 and 2310.04378; jumps
on the student's own states as in arXiv 2405.14867.)
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from pydantic import ConfigDict, Field
from torch import Tensor

from fewer.core.checkpoint import refuse_earlier_run
from fewer.core.device import DtypeName, seeded
from fewer.core.errors import ConfigError, DataError
from fewer.core.progress import Progress, SilentProgress
from fewer.core.ranks import rank
from fewer.core.train import FitPlan, FitResult, fit
from fewer.generate.lora import LowRank
from fewer.generate.sampling import Guidance, VelocityFn, guided_velocity, sample
from fewer.generate.sampling.few_steps import MOST_STEPS, few_step_levels
from fewer.generate.sampling.schedule import TRAINING_LEVELS, shift_levels
from fewer.generate.training.merged import MergedFactors
from fewer.generate.training.quick_step import is_plain, precision
from fewer.generate.training.transformer import refuse_fp16
from fewer.generate.transformer.sana import SanaTransformer

_ORDER = (0, 2, 0, 2, 1, 0, 2, 0, 2, 3)
"""Which level of the longest grid each part of a pool starts from: the two of two steps most often."""
_SOFT = 0.1
"""Errors of a token below this count squared, above it linearly: the median of what is possible is sharper
than its mean (latents have unit variance)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FewStepsTraining:
    """How a few-step edition is trained."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    steps: Annotated[int, Field(ge=1, le=10_000_000)] = 2500
    batch: Annotated[int, Field(ge=1, le=65536)] = 128
    rank: Annotated[int, Field(ge=1, le=4096)] = 64
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    guidance: Annotated[float, Field(ge=0, le=100)] = 4.5
    """Of the teacher; the edition has it built in."""
    shift: Annotated[float, Field(gt=0, le=100)] = 3.0
    teacher_steps: Annotated[int, Field(ge=2, le=1000)] = 12
    """From pure noise; from a lower level fewer in proportion."""
    parts: Annotated[int, Field(ge=1, le=10_000)] = 16
    """Batches of pairs that a round makes."""
    reuse: Annotated[int, Field(ge=1, le=1000)] = 8
    """How often a round learns from each pair."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = 0.99
    dtype: DtypeName = "auto"
    compiled: bool = False
    seconds: Annotated[float, Field(gt=0)] | None = None
    """Ends after so much time, or after `steps` if that is sooner."""
    seed: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, slots=True)
class Prompts:
    """Text features of many prompts, row 0 the empty one, where the network is."""

    tokens: Float[Tensor, "prompts length text_dim"]
    mask: Bool[Tensor, "prompts length"]

    def rows(self, which: Int[Tensor, " batch"]) -> tuple[Tensor, Tensor]:
        """Tokens in fp32 and mask of some prompts; the length is the table's, so all batches look alike."""
        return self.tokens[which].float(), self.mask[which].float()


@dataclass(frozen=True, slots=True)
class Jumps:
    """Where jumps start and where the teacher arrives."""

    latents: Float[Tensor, "pairs channels lat_h lat_w"]
    levels: Float[Tensor, " pairs"]
    times: Float[Tensor, " pairs"]
    """What the network reads there: of 0 to 1000, cut to a whole number as the sampler does."""
    prompts: Int[Tensor, " pairs"]
    targets: Float[Tensor, "pairs channels lat_h lat_w"]

    def at(self, rows: Int[Tensor, " batch"]) -> "Jumps":
        """Some of the pairs."""
        return Jumps(*(getattr(self, name)[rows] for name in self.__slots__))


def distill_few_steps(
    transformer: SanaTransformer,
    prompts: Prompts,
    training: FewStepsTraining,
    *,
    device: torch.device | None = None,
    checkpoints: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> tuple[dict[str, LowRank], FitResult]:
    """The edition as an adapter of every linear layer; the transformer itself is not changed.

    A run that is stopped after a whole round and resumed ends with the same numbers; within a round the
    pool is made again. Raises `DataError` without prompts and `ConfigError` for a Sprint model.
    """
    if transformer.params.guidance_embeds:
        raise ConfigError("this model is a few-step model already (it takes the guidance value inside)")
    if len(prompts.tokens) < 2:
        raise DataError("there are no prompts to learn from; give at least one beside the empty one")
    device = device or torch.device("cpu")
    teacher = transformer.to(device).eval()
    trained = {name: parameter.requires_grad for name, parameter in teacher.named_parameters()}
    student = copy.deepcopy(teacher)
    teacher.requires_grad_(False)
    factors = MergedFactors(student, training.rank, seeded(training.seed, 21))
    optimizer = torch.optim.AdamW(
        factors.parameters(), lr=training.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
    )
    workshop = _Workshop(teacher, student, factors, prompts, training, device, progress or SilentProgress())
    with _compiled(training, device, teacher, student):
        result = fit(
            _plan(training, device, checkpoints, workshop.steps_a_round, resume),
            {"factors": factors},
            optimizer,
            workshop.loss,
            workshop.batch_at,
            progress,
        )
    for name, parameter in teacher.named_parameters():
        parameter.requires_grad_(trained[name])
    factors.take(result.averages.get("factors", {}))
    return factors.adapter(), result


def _plan(
    training: FewStepsTraining, device: torch.device, folder: Path | None, a_round: int, resume: bool
) -> FitPlan:
    if folder is not None:
        refuse_earlier_run(folder, resume)
    return FitPlan(
        steps=training.steps,
        warmup=min(20, training.steps),
        final_rate=0.02,
        ema_decay=training.ema_decay,
        checkpoint_folder=folder,
        checkpoint_every=a_round * (4 if device.type == "cuda" else 1),
        look_every=10 if device.type == "cuda" else 1,
        resume=resume,
        seconds=training.seconds,
        seed=training.seed,
    )


class _Workshop:
    """Teacher, student and the pool of the present round."""

    def __init__(
        self,
        teacher: SanaTransformer,
        student: SanaTransformer,
        factors: MergedFactors,
        prompts: Prompts,
        training: FewStepsTraining,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.teacher, self.student, self.factors = teacher, student, factors
        self.prompts, self.training, self.device, self.progress = prompts, training, device, progress
        self.dtype = refuse_fp16(training.dtype, device)
        self.levels = few_step_levels(training.shift)[MOST_STEPS - 1][:-1]
        self.steps_a_round = training.parts * training.reuse
        self._round, self._pool = -1, None

    def batch_at(self, step: int, generator: torch.Generator) -> Jumps:
        """The pairs of a step: a pool read `reuse` times, each time in another order."""
        number, place = divmod(step, self.steps_a_round)
        if number != self._round or self._pool is None:
            self._round, self._pool = number, self._make_pool(number)
        time, part = divmod(place, self.training.parts)
        order = torch.randperm(
            self.training.parts * self.training.batch, generator=seeded(self.training.seed, number, time, 23)
        )
        rows = order[part * self.training.batch : (part + 1) * self.training.batch]
        return self._pool.at(rows.to(self.device))

    def loss(self, batch: Jumps, generator: torch.Generator) -> Tensor:
        """How far the student's guesses are from where the teacher arrived, softly counted by token."""
        self.factors.merge()
        tokens, mask = self.prompts.rows(batch.prompts)
        times = batch.times * self.student.params.timestep_scale
        with precision(self.dtype, self.device):
            velocity = self.student(batch.latents, times, tokens, mask)
        guess = batch.latents - batch.levels[:, None, None, None] * velocity.float()
        error = (guess - batch.targets).square().mean(dim=1)
        return self.factors.through(((error + _SOFT**2).sqrt() - _SOFT).mean())

    @torch.no_grad()
    def _make_pool(self, number: int) -> Jumps:
        self.factors.merge()
        made = [self._make_part(number, part) for part in range(self.training.parts)]
        return Jumps(*(torch.cat([getattr(part, name) for part in made]) for name in Jumps.__slots__))

    def _make_part(self, number: int, part: int) -> Jumps:
        generator = torch.Generator(self.device)
        generator.manual_seed(seeded(self.training.seed, number, part, rank(), 22).initial_seed())
        batch, params = self.training.batch, self.teacher.params
        which = torch.randint(1, len(self.prompts.tokens), (batch,), generator=generator, device=self.device)
        tokens, mask = self.prompts.rows(which)
        shape = (batch, params.in_channels, params.sample_size, params.sample_size)
        latents = torch.randn(shape, generator=generator, device=self.device)
        place = (number * self.training.parts + part) % len(_ORDER)
        first, level = self.levels[0], self.levels[_ORDER[place]]
        with precision(self.dtype, self.device):
            if level < first:
                with _eager(self.training.compiled):
                    velocity = self._velocity(self.student, tokens, mask)(latents, _time(first))
                # a straight jump to the guess, stopped on the way: first-order Flow-DPM
                latents = latents + (level - first) * velocity.float()
            targets = self._arrive(latents, level, tokens, mask)
        levels, times = (torch.full((batch,), x, device=self.device) for x in (level, _time(level)))
        return Jumps(latents, levels, times, which, targets)

    def _arrive(self, latents: Tensor, level: float, tokens: Tensor, mask: Tensor) -> Tensor:
        """Where the guided teacher ends from `latents` at `level`."""
        grid = levels_from(level, self.training.teacher_steps, self.training.shift)
        guidance = Guidance(scale=self.training.guidance).check()
        conditional = self._velocity(self.teacher, tokens, mask)
        velocity = conditional
        if guidance.wanted:
            nothing, nothing_mask = self.prompts.rows(torch.zeros(len(latents), dtype=torch.long))
            both = self._velocity(self.teacher, torch.cat([nothing, tokens]), torch.cat([nothing_mask, mask]))
            velocity = guided_velocity(conditional, both, guidance)
        for step in sample(velocity, latents, levels=grid):
            latents = step.latents
        return latents

    def _velocity(self, network: SanaTransformer, tokens: Tensor, mask: Tensor) -> VelocityFn:
        text = network.prepare(tokens, mask, drop=False)

        def velocity(latents: Tensor, timestep: float) -> Tensor:
            times = torch.full((len(latents),), timestep * network.params.timestep_scale, device=self.device)
            return network.denoise(latents, times, text)

        return velocity


def _time(level: float) -> float:
    return float(math.trunc(TRAINING_LEVELS * level))


def levels_from(level: float, steps: int, shift: float) -> list[float]:
    """Falling levels from `level` to zero, spaced as those of `steps` steps from pure noise."""
    unshifted = level / (shift - (shift - 1) * level)
    count = max(2, round(steps * unshifted))
    between = [shift_levels(unshifted * (1 - place / count), shift) for place in range(1, count)]
    return [level, *between, 0.0]


@contextmanager
def _compiled(training: FewStepsTraining, device: torch.device, *networks: SanaTransformer) -> Iterator[None]:
    """On a GPU: the kernels made for training, and each block compiled."""
    on = training.compiled and device.type == "cuda"
    for network in networks if on else ():
        network.fuse_attention(is_plain(network))
        for block in network.transformer_blocks:
            block.compile(dynamic=False)
    try:
        yield
    finally:
        for network in networks if on else ():
            network.fuse_attention(False)
            for block in network.transformer_blocks:
                block._compiled_call_impl = None


@contextmanager
def _eager(compiled: bool) -> Iterator[None]:
    """The student's own jumps are few: not worth a compilation for another kind of call."""
    if not compiled:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
