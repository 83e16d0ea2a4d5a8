"""A few-step edition: how it stands beside a model, and the noise levels at which it stops.

A few-step edition jumps. From each level it guesses the noise-free latents at once, and goes to the next
level along the straight line to them: first-order Flow-DPM on its own levels. The guess has guidance built
in. On disk it is an adapter (LoRA) in `adapters/few-steps` of the model's folder, and a small file of
settings.
"""

from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field

from fewer.core.config import validate
from fewer.core.errors import ConfigError
from fewer.core.files import read_json, write_json
from fewer.generate.sampling.schedule import flow_dpm_levels

FOLDER = Path("adapters") / "few-steps"
"""Where a model folder keeps its few-step edition."""
WEIGHTS = "pytorch_lora_weights.safetensors"
MOST_STEPS = 4
_FILE = "few_steps.json"
_BETWEEN = {1: (), 2: (0.75,), 3: (0.75, 0.5), 4: (0.9, 0.75, 0.5)}


@dataclass(frozen=True, slots=True, kw_only=True)
class FewSteps:
    """How a few-step edition wants to be used: the content of few_steps.json, and where its weights are."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    levels: tuple[tuple[float, ...], ...]
    """For 1, 2, ... steps: falling noise levels, the last one zero."""
    guidance: Annotated[float, Field(ge=0, le=100)]
    """Guidance of the teacher, which is built in."""
    weights: Path | None = None
    """File of the adapter; not written."""

    def check(self) -> "FewSteps":
        """Returns itself. Raises `ConfigError` for levels that are none."""
        if not 1 <= len(self.levels) <= MOST_STEPS:
            raise ConfigError(
                f"{_FILE}: levels for {len(self.levels)} step counts; 1 to {MOST_STEPS} allowed"
            )
        for steps, grid in enumerate(self.levels, 1):
            falling = all(above > below for above, below in pairwise(grid))
            if len(grid) != steps + 1 or not falling or not grid[0] <= 1 or grid[-1] != 0:
                raise ConfigError(f"{_FILE}: levels of {steps} steps must be {steps + 1} falling ones to 0")
        return self

    @property
    def most(self) -> int:
        """The largest number of steps it knows."""
        return len(self.levels)


def few_step_levels(shift: float) -> tuple[tuple[float, ...], ...]:
    """The levels of 1 to 4 steps: from Flow-DPM's first level down, each grid a part of the longest."""
    first = float(flow_dpm_levels(1, shift)[0])
    return tuple((first, *_BETWEEN[steps], 0.0) for steps in range(1, MOST_STEPS + 1))


def open_few_steps(model: Path) -> FewSteps | None:
    """The few-step edition of a model folder, if it has one. Raises `FileError`, `ConfigError` for damage."""
    folder = model / FOLDER
    if not (folder / _FILE).is_file():
        return None
    found = validate(FewSteps, read_json(folder / _FILE)).check()
    return replace(found, weights=folder / WEIGHTS)


def write_few_steps(model: Path, settings: FewSteps) -> Path:
    """Writes the settings into a model folder; returns the edition's folder, where the adapter belongs."""
    facts = asdict(settings.check())
    del facts["weights"]
    write_json(model / FOLDER / _FILE, facts)
    return model / FOLDER
