"""A training set that lies where the network is, so that a step waits for nobody.

All pictures have one size. What a step trains on (pictures, captions, levels, noise) is drawn on the device
too, from a generator that depends on (seed, step) alone.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fewer.core.errors import DataError
from fewer.generate.sampling.schedule import logit_normal_levels
from fewer.generate.training.flow import FlowBatch


@dataclass(frozen=True, slots=True)
class DeviceSet:
    """Latents, and captions as rows of a table of text features; row 0 is the empty prompt."""

    latents: Float[Tensor, "pictures channels lat_h lat_w"]
    captions: Int[Tensor, "listed each"]
    """Rows of the table for each picture."""
    chances: Float[Tensor, "weighed each"]
    """How often each caption is drawn; zero for none."""
    text: Float[Tensor, "rows length text_dim"]
    text_mask: Bool[Tensor, "rows length"]

    def __post_init__(self) -> None:
        if not len(self.latents) == len(self.captions) == len(self.chances) > 0:
            raise DataError(
                f"{len(self.latents)} pictures, {len(self.captions)} lists of captions and "
                f"{len(self.chances)} of chances; at least 1, and as many"
            )

    def columns(self) -> dict[str, Tensor]:
        """The fields by name, for a file."""
        return {name: getattr(self, name) for name in self.__slots__}

    def flow_batch(
        self, count: int, shift: float, caption_drop: float, generator: torch.Generator
    ) -> FlowBatch:
        """A batch drawn with replacement. Text keeps the table's length, so that all batches look alike."""
        device = self.latents.device
        rows = torch.randint(len(self.latents), (count,), generator=generator, device=device)
        place = torch.multinomial(self.chances[rows], 1, generator=generator)
        caption = self.captions[rows].gather(1, place)[:, 0]
        dropped = torch.rand(count, generator=generator, device=device) < caption_drop
        caption = torch.where(dropped, 0, caption)
        latents = self.latents[rows].float()
        levels = logit_normal_levels(count, shift, generator)
        noise = torch.randn(latents.shape, generator=generator, device=device)
        return FlowBatch(
            latents,
            self.text[caption].float(),
            self.text_mask[caption].float(),
            levels,
            noise,
        )
