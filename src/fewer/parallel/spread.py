"""What both parallel Sanas share, the plain one and the engine's: who denoises which half and which band."""

from collections.abc import Callable

import torch
from torch import Tensor

from fewer.generate.transformer.params import SanaParams
from fewer.generate.transformer.prepared_text import PreparedText
from fewer.parallel.agreement import Agreement, picture_facts
from fewer.parallel.bands import Bands, cut
from fewer.parallel.group import Group
from fewer.parallel.halves import halved
from fewer.parallel.memory import band_bytes, require_on_every_rank
from fewer.parallel.plan import ParallelPlan
from fewer.parallel.session import Session


class Spread:
    """The ranks' places: `patches` share one picture, `halves` hold the two halves of guidance."""

    def __init__(self, plan: ParallelPlan, group: Group, params: SanaParams) -> None:
        self.whole, self.params, self.patch_size = group, params, params.patch_size
        self.patches, halves = halved(plan, group)
        self.halves = None if halves is None else halves.group
        self.session = Session(self.patches, plan)
        self.agreement = Agreement(group)
        self._text: PreparedText | None = None
        self._fitting: list[object] = []
        self._half: tuple[PreparedText | None, PreparedText | None] = (None, None)

    def enter(
        self, latents: Tensor, timestep: Tensor, text: PreparedText, guidance: Tensor | None
    ) -> tuple[Tensor, Tensor, PreparedText, Tensor | None]:
        """Begins a step on all ranks; gives the samples that this one denoises, of the whole picture."""
        self.agree(latents, text)
        own = self.own_half(latents, timestep, text, guidance)
        self.begin(own[0], own[1])
        return own

    def agree(self, latents: Tensor, text: PreparedText) -> None:
        """Once a picture, which has a text of its own: were all ranks asked for the same? Does a size fit?

        Raises `ConfigError` naming who was not, `CapacityError` naming who has no room, on every rank.
        """
        facts = picture_facts(latents) | {
            "text": list(text.blocks[0].keys.shape),
            "text has a mask": text.mask is not None,
        }
        if self.agreement.check(facts, begins=text is not self._text):
            self.session.end_step()  # the picture before may have been cancelled at any time
            self.session.begin_image()
        self._text = text
        if facts not in self._fitting:
            axis, bands = self._cut(latents)
            sides = (max(bands.lengths) // self.patch_size, latents.shape[5 - axis] // self.patch_size)
            samples = -(-len(latents) // (2 if self.halves is not None else 1))
            needed = band_bytes(self.params, self.session.plan, sides, samples, latents.element_size())
            require_on_every_rank(self.whole, needed, latents.device, "for a step of these bands")
            self._fitting = [*self._fitting[-3:], facts]

    def own_half(
        self, latents: Tensor, timestep: Tensor, text: PreparedText, guidance: Tensor | None
    ) -> tuple[Tensor, Tensor, PreparedText, Tensor | None]:
        """The samples that this rank denoises: half of them where guidance is split, else all."""
        if self.halves is None or latents.shape[0] % 2:
            return latents, timestep, text, guidance
        half = latents.shape[0] // 2
        mine = slice(self.halves.rank * half, (self.halves.rank + 1) * half)
        if self._half[0] is not text:
            chosen = torch.arange(half, device=latents.device) + self.halves.rank * half
            self._half = (text, text.select(chosen))
        own_text = self._half[1]
        assert own_text is not None
        return latents[mine], timestep[mine], own_text, None if guidance is None else guidance[mine]

    def join_halves(self, velocity: Tensor, samples: int) -> Tensor:
        """The velocities of all samples, on every rank."""
        if self.halves is None or samples % 2:
            return velocity
        return self.halves.start_gather(velocity, [samples // 2] * 2, 0).wait()

    def embedded(self, embed: Callable, timestep: Tensor, guidance: Tensor | None) -> tuple[Tensor, Tensor]:
        """The time's embedding, `embed(timestep, guidance)`, bit for bit as one device would make it.

        A product with a single row is summed in another order than one with several, and one device has at
        least two rows where guidance is split: so a single row is made in company.
        """
        if self.halves is None or len(timestep) > 1:
            return embed(timestep, guidance)
        modulation, embedding = embed(timestep.repeat(2), None if guidance is None else guidance.repeat(2))
        return modulation[:1], embedding[:1]

    def begin(self, latents: Tensor, timestep: Tensor) -> None:
        """Cuts the picture and counts the step."""
        axis, bands = self._cut(latents)
        self.session.begin_step(self.session.read_time(timestep), bands, axis, len(latents))

    def _cut(self, latents: Tensor) -> tuple[int, Bands]:
        asked = self.session.plan.axis
        axis = {"rows": 2, "columns": 3, "auto": 3 if latents.shape[3] > latents.shape[2] else 2}[asked]
        return axis, cut(latents.shape[axis], self.session.group.size, self.patch_size)

    def own_band(self, latents: Tensor) -> Tensor:
        """This rank's rows (or columns) of the whole latents."""
        session, rank = self.session, self.session.group.rank
        return latents.narrow(session.axis, session.bands.start(rank), session.bands.lengths[rank])

    def join_bands(self, velocity: Tensor) -> Tensor:
        """The whole picture's velocity, on every rank of the patch group."""
        session = self.session
        return session.group.start_gather(velocity, session.bands.lengths, session.axis).wait()
