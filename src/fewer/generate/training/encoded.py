"""A training set made ready: latents of every picture and text features of every caption, encoded once.

Neither depends on the step, so the loop over steps touches the transformer alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from fewer.core.errors import DataError, FileError
from fewer.core.progress import Progress, SilentProgress, track
from fewer.core.tensors import read_tensors, write_tensors
from fewer.generate.text.prompt import PromptEncoder
from fewer.generate.training.buckets import Shape
from fewer.generate.training.captions import WeightMode, caption_weights, draw_captions


@dataclass(frozen=True, slots=True)
class TextTable:
    """Text features of many captions, one row each."""

    tokens: Float[Tensor, "captions length text_dim"]
    mask: Bool[Tensor, "captions length"]

    def rows(
        self, which: Sequence[int]
    ) -> tuple[Float[Tensor, "batch kept text_dim"], Float[Tensor, "batch kept"]]:
        """Some captions, cut to the longest of them, in fp32."""
        chosen = torch.as_tensor(which)
        mask = self.mask[chosen]
        longest = max(1, int(mask.sum(dim=1).max()))
        return self.tokens[chosen, :longest].float(), mask[:, :longest].float()


@dataclass(frozen=True, slots=True)
class EncodedSet:
    """What a transformer trains on."""

    latents: list[Float[Tensor, "channels _ _"]]
    captions: list[tuple[int, ...]]
    """Rows of `text`, for each picture."""
    weights: list[Float64[np.ndarray, " _"]]
    """How often each of a picture's captions is drawn."""
    text: TextTable
    empty: int
    """The row of the empty prompt, which stands for any dropped caption."""

    @property
    def shapes(self) -> list[Shape]:
        """Latent height and width of each picture: its bucket."""
        return [(latents.shape[1], latents.shape[2]) for latents in self.latents]

    def batch(
        self, pictures: Sequence[int], caption_drop: float, generator: torch.Generator
    ) -> tuple[
        Float[Tensor, "batch channels lat_h lat_w"],
        Float[Tensor, "batch kept text_dim"],
        Float[Tensor, "batch kept"],
    ]:
        """Latents, text and mask of some pictures of one bucket; captions drawn, some dropped."""
        dropped = torch.rand(len(pictures), generator=generator) < caption_drop
        rows = []
        for picture, without in zip(pictures, dropped.tolist(), strict=True):
            drawn = draw_captions(self.weights[picture], generator)[0]
            rows.append(self.empty if without else self.captions[picture][drawn])
        return torch.stack([self.latents[picture] for picture in pictures]).float(), *self.text.rows(rows)


def encode_captions(
    encoder: PromptEncoder,
    texts: Sequence[str],
    progress: Progress | None = None,
    batch: int = 64,
    device: str | torch.device = "cpu",
) -> TextTable:
    """Text features of every caption, kept in bf16 and on `device`; the empty prompt as a negative one.

    Captions of similar length are encoded together. Raises `DataError` without captions.
    """
    if not texts:
        raise DataError("there are no captions to train on; give each picture a sentence")
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    starts = list(range(0, len(order), batch))
    tokens = torch.zeros(len(texts), encoder.length, encoder.channels, dtype=torch.bfloat16, device=device)
    mask = torch.zeros(len(texts), encoder.length, dtype=torch.bool, device=device)
    for start in track(starts, progress or SilentProgress(), "captions", len(starts)):
        rows = order[start : start + batch]
        for chosen, instruct in ((True, True), (False, False)):
            part = [row for row in rows if bool(texts[row].strip()) is chosen]
            if part:
                found = encoder.encode([texts[row] for row in part], instruct=instruct)
                where = torch.tensor(part, device=device)
                tokens[where] = found.tokens.to(device, torch.bfloat16)
                mask[where] = found.mask.to(device)
    # Attention kernels like lengths that eight divides.
    longest = min(encoder.length, -(-int(mask.sum(dim=1).max()) // 8) * 8)
    return TextTable(tokens[:, :longest], mask[:, :longest])


def assemble(
    latents: list[Tensor],
    captions: Sequence[Sequence[tuple[str, float]]],
    encoder: PromptEncoder,
    mode: WeightMode = "power",
    progress: Progress | None = None,
) -> EncodedSet:
    """Puts latents and (caption, score) lists together; each different caption is encoded once."""
    if not latents or len(latents) != len(captions):
        raise DataError(
            f"{len(latents)} pictures and {len(captions)} lists of captions; at least 1, and as many"
        )
    texts = list(dict.fromkeys(["", *(text for of_one in captions for text, _ in of_one)]))
    row_of = {text: row for row, text in enumerate(texts)}
    rows = [tuple(row_of[text] for text, _ in of_one) for of_one in captions]
    weights = [caption_weights([score for _, score in of_one], mode) for of_one in captions]
    return EncodedSet(latents, rows, weights, encode_captions(encoder, texts, progress), row_of[""])


def save_encoded(path: Path, data: EncodedSet) -> None:
    """One safetensors file, so that a resumed run need not encode again. Latents are kept in bf16."""
    shapes = [latents.shape for latents in data.latents]
    write_tensors(
        path,
        {
            "latents": torch.cat([latents.flatten() for latents in data.latents]).to(torch.bfloat16),
            "shapes": torch.tensor([list(shape) for shape in shapes]),
            "captions": torch.tensor([row for rows in data.captions for row in rows]),
            "captions_each": torch.tensor([len(rows) for rows in data.captions]),
            "weights": torch.from_numpy(np.concatenate(data.weights)),
            "text": data.text.tokens,
            "text_mask": data.text.mask,
            "empty": torch.tensor(data.empty),
        },
    )


def load_encoded(path: Path) -> EncodedSet:
    """Inverse of `save_encoded`. Raises `FileError` for a file that is missing, damaged or something else."""
    found = read_tensors(path)
    if not {"latents", "shapes", "captions", "captions_each", "weights", "text", "text_mask", "empty"} <= set(
        found
    ):
        raise FileError(f"{path.name!r} is no encoded training set; delete it and encode again")
    shapes, each = found["shapes"].tolist(), found["captions_each"].tolist()
    flat = found["latents"].split([math.prod(shape) for shape in shapes])
    return EncodedSet(
        [part.view(*shape) for part, shape in zip(flat, shapes, strict=True)],
        [tuple(rows.tolist()) for rows in found["captions"].split(each)],
        [part.numpy() for part in found["weights"].split(each)],
        TextTable(found["text"], found["text_mask"]),
        int(found["empty"]),
    )
