"""What is distilled how: one frozen plan that fully determines a run, and the published defaults per
method.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from fewer.learn.distillation.architectures import NetworkPlan
from fewer.learn.distillation.augment import OperationName

SelectionName = Literal["random", "herding", "k-centre", "rded"]
MethodName = Literal[
    "dc", "dsa", "idc", "dm", "idm", "ncfm", "mtt", "datm", "sre2l", "random", "herding", "k-centre", "rded"
]
StartName = Literal["noise", "class-means", "real"]
SELECTIONS: tuple[SelectionName, ...] = ("random", "herding", "k-centre", "rded")
"""Methods that pick or cut real pictures: what they write holds real pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryPlan:
    """Networks trained on the real set beforehand: experts of MTT and DATM, extractors of IDM and NCFM."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    experts: Annotated[int, Field(ge=1, le=200)] = 20
    epochs: Annotated[int, Field(ge=1, le=200)] = 30
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.01
    balanced: bool = False
    """Experts see every class equally often. Published experts do not: their data is balanced by itself."""
    student_steps: Annotated[int, Field(ge=1, le=200)] = 20
    """N: steps of the student on the synthetic set."""
    expert_steps: Annotated[int, Field(ge=1, le=100)] = 2
    """M: epochs of the expert that these steps must make good."""
    latest_start: Annotated[int, Field(ge=1, le=200)] = 10
    """The student starts at an expert's epoch below this."""
    students: Annotated[int, Field(ge=1, le=64)] = 1
    """Experts matched side by side in one step."""
    student_batch: Annotated[int, Field(ge=1, le=4096)] = 256
    """Synthetic pictures in a step of the student; larger than the set: all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyPlan:
    """Differential privacy by clipping and noise (DP-SGD's Gaussian mechanism on what is matched)."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    epsilon: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Wanted epsilon; the noise is derived from it. Give either this or `noise_multiplier`."""
    noise_multiplier: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Standard deviation of the noise divided by `clip`."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    clip: Annotated[float, Field(gt=0)] = 1.0
    """No protected unit moves a sum by more than this (L2)."""
    sample_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Poisson sampling: the chance of each unit to take part in a step."""
    accountant: Literal["rdp", "prv"] = "rdp"


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillPlan:
    """A run. None means: the method's own default, filled in by `resolve`."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    method: MethodName = "dm"
    images_per_class: Annotated[int, Field(ge=1, le=5000)] = 10
    seed: Annotated[int, Field(ge=0)] = 0
    iterations: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    seconds: Annotated[float, Field(gt=0)] | None = None
    """Stop after this time, whatever is reached (then a run is no longer a pure function of its seed)."""
    start: StartName | None = None
    """Where pictures start; real pictures give the best figures and the least privacy."""
    factor: Annotated[int, Field(ge=1, le=4)] | None = None
    """Multi-formation: factor x factor small pictures in each stored one."""
    augmentations: tuple[OperationName, ...] | None = None
    real_batch: Annotated[int, Field(ge=1, le=8192)] | None = None
    """Real pictures per class in a step: 256; ncfm 1024, or as many as the smallest class has."""
    outer_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Steps of one network (DC's O)."""
    inner_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Steps of training that network between two of them (DC's I)."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Of the pictures."""
    network_learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.01
    distance: Literal["units", "cosine", "squares"] = "units"
    soft_labels: bool | None = None
    """Give every picture the class probabilities of a teacher trained on the real set."""
    precision: Literal["uint8", "float16", "float32"] = "uint8"
    """How pictures are written: as pixels (small, viewable), or normalised numbers (exact)."""
    batched: bool | None = None
    """Networks and classes through vmap: None chooses by device."""
    network: NetworkPlan = field(default_factory=NetworkPlan)
    trajectory: TrajectoryPlan = field(default_factory=TrajectoryPlan)
    privacy: PrivacyPlan | None = None


@dataclass(frozen=True, slots=True)
class _Defaults:
    iterations: int
    learning_rate: float
    start: StartName
    factor: int = 1
    augmented: bool = True
    soft_labels: bool = False


# Published settings where there are any; the number of iterations is smaller where small sets converge early.
_DEFAULTS: dict[str, _Defaults] = {
    "dc": _Defaults(1000, 0.1, "noise", augmented=False),
    "dsa": _Defaults(1000, 0.1, "class-means"),
    "idc": _Defaults(1000, 0.1, "class-means", factor=2),
    "dm": _Defaults(2000, 1.0, "class-means"),
    "idm": _Defaults(2000, 1.0, "class-means", factor=2),
    "ncfm": _Defaults(2000, 0.01, "class-means", factor=2),
    "mtt": _Defaults(1000, 100.0, "class-means"),
    "datm": _Defaults(1000, 100.0, "real", soft_labels=True),
    "sre2l": _Defaults(1000, 0.1, "noise", augmented=False, soft_labels=True),
    "random": _Defaults(1, 1.0, "real"),
    "herding": _Defaults(1, 1.0, "real"),
    "k-centre": _Defaults(1, 1.0, "real"),
    "rded": _Defaults(1, 1.0, "real", factor=2, soft_labels=True),
}
REAL_BATCH, NCFM_BATCH = 256, 1024  # published
# DC's table of (outer, inner) steps by images per class.
_STEPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


def resolve(
    plan: DistillPlan, augmentations: tuple[OperationName, ...], smallest: int = NCFM_BATCH
) -> DistillPlan:
    """The same plan with every None filled; `augmentations` are those that suit the pictures, `smallest` is
    the number of pictures of the class that has fewest."""
    own = _DEFAULTS[plan.method]
    outer, inner = _STEPS.get(
        plan.images_per_class, (plan.images_per_class, max(1, 500 // plan.images_per_class))
    )
    filled = {
        "iterations": own.iterations,
        "start": "noise" if plan.privacy else own.start,
        "factor": own.factor,
        "augmentations": augmentations if own.augmented else (),
        "real_batch": max(REAL_BATCH, min(NCFM_BATCH, smallest)) if plan.method == "ncfm" else REAL_BATCH,
        "outer_steps": outer,
        "inner_steps": inner,
        # DM's public setting: large sets take larger steps, because each picture's share of a mean is small.
        "learning_rate": 10.0 if plan.method == "dm" and plan.images_per_class >= 100 else own.learning_rate,
        "soft_labels": own.soft_labels and plan.privacy is None,
    }
    missing = {
        entry.name: filled[entry.name]
        for entry in fields(plan)
        if entry.name in filled and getattr(plan, entry.name) is None
    }
    return replace(plan, **missing)
