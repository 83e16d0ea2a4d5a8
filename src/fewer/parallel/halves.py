"""The two halves of guidance on different ranks, for any model: who takes which samples, how they meet."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fewer.parallel.group import Group
from fewer.parallel.plan import ParallelPlan

# Positions of tokens: their first axis counts tokens, not samples.
WITHOUT_SAMPLES = ("img_ids", "txt_ids")


@dataclass(frozen=True, slots=True)
class Halves:
    """The two ranks that hold the same band, one of each half."""

    group: Group

    def splits(self, samples: int) -> bool:
        """Whether so many samples are shared out; an odd number is denoised by both."""
        return samples % 2 == 0 and samples > 0

    def take(self, value: Any, samples: int, name: str = "") -> Any:
        """This half's part of an argument: tensors of so many samples, also inside lists and dicts."""
        if isinstance(value, Tensor):
            whole = value.ndim == 0 or len(value) != samples or name in WITHOUT_SAMPLES
            return value if whole else value.chunk(2)[self.group.rank]
        if isinstance(value, Mapping):
            return {key: self.take(each, samples, str(key)) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.take(each, samples) for each in value)
        return value

    def join(self, half: Tensor) -> Tensor:
        """All samples, on every rank."""
        return self.group.start_gather(half, [len(half)] * 2, 0).wait()


def halved(plan: ParallelPlan, group: Group) -> tuple[Group, Halves | None]:
    """The ranks that share one picture, and who holds the other half; None where guidance is not split."""
    if plan.guidance_ways == 1:
        return group, None
    bands = plan.bands
    patches = group.split([range(way * bands, (way + 1) * bands) for way in range(2)])
    return patches, Halves(group.split([(rank, rank + bands) for rank in range(bands)]))


def output_of(output: Any) -> Tensor:
    """The tensor in what a diffusers model gives."""
    return output[0]


def with_output(output: Any, tensor: Tensor) -> Any:
    """The same kind of output around another tensor."""
    if isinstance(output, tuple):
        return (tensor, *output[1:])
    return replace(output, sample=tensor)
